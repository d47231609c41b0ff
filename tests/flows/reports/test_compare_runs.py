"""Runs: listed, found by id, name or directory, and compared by settings, results, paired tests and curves."""

import io
import json
import math
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from dpo_core.config.recipe import Recipe, TrackSettings, TrainSettings
from dpo_core.errors import RecipeError, TrackingError
from flows.cli.main import cli
from flows.registry.versions import Candidate
from flows.reports import compare_plot, compare_runs, comparison_page, run_report, run_table
from flows.reports.run_table import Experiment
from flows.tracking import mlflow_run
from tests.flows import fake
from tests.flows.registry.test_versions import promoted, registered


def add(recipe: Recipe, candidate: Candidate, name: str, **train: Any) -> mlflow_run.RunHandle:
    """A finished run with results and a journal."""
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
    handle = mlflow_run.open_run(recipe.track, recipe, name, name)
    mlflow_run.log_journal(handle, candidate.checkpoint.log_path)
    run_report.log_data(handle, candidate.pairs, candidate.rendered)
    run_report.log_results(handle, candidate)
    mlflow_run.close_run(handle, "FINISHED")
    return handle


def filled(recipe: Recipe, directory: Path) -> list[mlflow_run.RunHandle]:
    """Two runs with the same prompts, and one with different prompts."""
    candidate = fake.candidate(directory / "candidate")
    worse = replace(candidate, after=fake.evaluation(directory / "worse", [False] * 40 + [True] * 60, 0.7))
    other = fake.evaluation(directory / "other", [True] * 100, 0.9)
    text = (other.path / "outcomes.jsonl").read_text().replace('"prompt ', '"question ')
    (other.path / "outcomes.jsonl").write_text(text)
    return [
        add(recipe, worse, "lr3e-05 beta0.1 [one]"),
        add(recipe, candidate, "lr3e-05 beta0.2 two", dpo_beta=0.2),
        add(recipe, replace(candidate, after=other), "lr1e-06 beta0.2 three", dpo_beta=0.2, learning_rate=1e-6),
    ]


@pytest.fixture(scope="module")
def three(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[mlflow_run.RunHandle]:
    """Three runs in a store that the tests only read."""
    directory = tmp_path_factory.mktemp("three")
    shutil.copyfile(empty_store, directory / "mlflow.db")
    track = TrackSettings(tracking_uri=f"sqlite:///{directory}/mlflow.db", experiment_name="tests")
    return filled(Recipe(track=track, train=TrainSettings(learning_rate=3e-5, batch_size=32)), directory)


@pytest.fixture
def experiment(three: list[mlflow_run.RunHandle]) -> Experiment:
    return Experiment(three[0].uri, three[0].client, three[0].experiment_id, "tests")


@pytest.fixture
def own(recipe: Recipe, run: mlflow_run.RunHandle) -> Experiment:
    """A store for one test, with one run."""
    return run_table.open_experiment(recipe.track)


def printed(table: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=250).print(table)
    return out.getvalue()


def test_table_has_differing_settings_results_and_champion(
    experiment: Experiment, three: list[mlflow_run.RunHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "champions", lambda _: {three[1].run_id: "dpo-test/1"})
    output = printed(run_table.runs_table(experiment, 10))
    rows = {name: next(line for line in output.splitlines() if name in line) for name in ("[one]", "two", "three")}
    assert "dpo_beta" in output
    assert "learning_rate" in output
    assert "batch_size" not in output
    assert "0.600" in rows["[one]"]
    assert "★ dpo-test/1" in rows["two"]
    assert "★" not in rows["[one]"] + rows["three"]
    assert "finished" in rows["three"]


def test_champions_are_listed_by_their_run(own: Experiment, run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    assert own.champions() == {}
    promoted(run, registered(run, candidate), candidate)
    assert own.champions() == {run.run_id: "dpo-test/1"}


def test_table_requests_no_metric_history(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.client, "get_metric_history", lambda *_: pytest.fail("asked for history"))
    assert "three" in printed(run_table.runs_table(experiment, 10))


def test_table_has_the_newest_runs_up_to_the_limit(experiment: Experiment) -> None:
    output = printed(run_table.runs_table(experiment, 1))
    assert "three" in output
    assert "[one]" not in output


def test_settings_without_a_column_are_named_in_the_caption(own: Experiment, recipe: Recipe) -> None:
    train = {"seed": 3, "batch_size": 7, "num_epochs": 2, "warmup_steps": 4, "adam_beta1": 0.5, "loss": "ipo"}
    train["weight_decay"] = 0.1
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
    mlflow_run.open_run(other.track, other, "much", "much")
    assert "The runs also differ in" in printed(run_table.runs_table(own, 10))


def test_run_is_found_by_id_name_part_and_directory(
    experiment: Experiment, three: list[mlflow_run.RunHandle], tmp_path: Path
) -> None:
    from dpo_core.train.checkpoint.run_dir import write_config  # lazy: for this test alone

    directory = tmp_path / "somewhere"
    directory.mkdir()
    write_config(directory, {"fingerprint": "x", "origin": "lr3e-05 beta0.2 two", "lineage": "x", "recipe": {}})
    identity = three[1].run_id
    for text in (identity, identity[:10], "lr3e-05 beta0.2 two", "lr3e-05 beta0.2", "two", str(directory)):
        assert run_table.find_run(experiment, text).info.run_id == identity
    assert run_table.find_run(experiment, "[one]").info.run_id == three[0].run_id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr3e-05 beta0.2 tow", r"No run in experiment 'tests' matches .* Did you mean lr3e-05 beta0.2 two"),
        ("lr", r"3 runs match 'lr': .*\. Exactly one must match\. Give the run's id"),
        ("it's", "No run in experiment"),
        ("%", "is not a run"),
        ("", "is not a run"),
    ],
)
def test_text_that_matches_no_run_or_several_is_refused(experiment: Experiment, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run_table.find_run(experiment, text)


def test_a_deleted_run_is_not_found(own: Experiment, run: mlflow_run.RunHandle) -> None:
    own.client.delete_run(run.run_id)
    with pytest.raises(RecipeError, match="No run in experiment"):
        run_table.find_run(own, run.run_id)


def test_directory_without_a_run_in_mlflow_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    from dpo_core.train.checkpoint.run_dir import write_config  # lazy: for this test alone

    write_config(tmp_path, {"fingerprint": "x", "origin": "x", "lineage": "x", "recipe": {}})
    with pytest.raises(TrackingError, match=f"To add it, run dpo sync {tmp_path}"):
        run_table.find_run(experiment, str(tmp_path))


def test_experiments_that_cannot_be_listed(own: Experiment, recipe: Recipe) -> None:
    other = recipe.track.model_copy(update={"experiment_name": "tezts"})
    with pytest.raises(RecipeError, match=r"There is no experiment 'tezts' .* Did you mean tests"):
        run_table.open_experiment(other)
    assert own.client.get_experiment_by_name("tezts") is None
    empty = own.client.create_experiment("empty")
    with pytest.raises(RecipeError, match="'empty' has no runs"):
        run_table.runs_table(replace(own, id=empty, name="empty"), 5)
    own.client.delete_experiment(own.id)
    with pytest.raises(TrackingError, match="'tests' was deleted"):
        run_table.open_experiment(recipe.track)


def compared(experiment: Experiment, *texts: str) -> compare_runs.RunComparison:
    return compare_runs.compare(experiment, compare_runs.find_runs(experiment, texts))


def test_a_paired_test_by_hand(experiment: Experiment) -> None:
    """The first follows 60 of 100 prompts, the second those and 30 more: 30 to 0 discordant."""
    comparison = compared(experiment, "[one]", "two")
    assert comparison.settings == {"dpo_beta": ("0.1", "0.2")}
    assert comparison.results["IFEval"] == ("0.6000", "0.9000")
    follows, prefers = comparison.tests
    assert "follows 90.0% of 100 prompts against 60.0%" in follows
    assert f"only this run follows 30, only the first 0; exact McNemar p = {2 * 0.5**30:.3g}." in follows
    assert "prefers the chosen side in 90.0% of 300 held-out pairs" in prefers


def test_different_prompts_have_no_paired_test(experiment: Experiment) -> None:
    tests = compared(experiment, "two", "three").tests
    assert "were evaluated on different prompts, so no paired test compares them" in tests[0]
    assert not any("McNemar" in line for line in tests)


def test_an_unfinished_run_is_compared_by_what_it_has(own: Experiment, recipe: Recipe, candidate: Candidate) -> None:
    add(recipe, candidate, "two")
    comparison = compared(own, "two", "a-run")
    assert comparison.results["IFEval"] == ("0.9000", "—")
    assert comparison.curves[comparison.labels[1]] == {}


def test_comparison_needs_two_runs(experiment: Experiment) -> None:
    with pytest.raises(RecipeError, match="A comparison needs at least two runs"):
        compared(experiment, "two", "two")


class Tags(HTMLParser):
    """HTML parser that collects the addresses of a page and checks that its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_files_are_self_contained(experiment: Experiment, tmp_path: Path) -> None:
    comparison = compared(experiment, "[one]", "two", "three")
    comparison = replace(comparison, tests=(*comparison.tests, "<script>"))
    text = compare_runs.write_files(comparison, tmp_path / "out").read_text()
    page = Tags()
    page.feed(text)
    assert page.open == []
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]
    assert "<script>" not in text
    assert "lr3e-05 beta0.1 [one]" in text
    assert json.loads((tmp_path / "out" / compare_runs.DATA).read_text())["settings"]["dpo_beta"] == [
        "0.1",
        "0.2",
        "0.2",
    ]
    assert "| dpo_beta | 0.1 | 0.2 | 0.2 |" in (tmp_path / "out" / compare_runs.MARKDOWN).read_text()
    assert comparison_page.MANY_TESTS in text


def test_curves_are_those_of_the_journals(experiment: Experiment) -> None:
    comparison = compared(experiment, "[one]", "two")
    curve = comparison.curves[comparison.labels[0]]
    assert [step for step, _ in curve["dpo_loss"]] == list(range(1, 21))
    assert curve["test/accuracy"] == [(step, fake.row(step)["test/accuracy"]) for step in (0, 10, 20)]


def test_long_curve_keeps_its_first_and_last_point() -> None:
    points = [(step, math.sin(step)) for step in range(12_345)]
    kept = compare_plot.thin_points(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert len(kept) <= compare_plot.MAX_POINTS + 1
    assert compare_plot.thin_points([]) == []


def test_the_commands_print_and_log(experiment: Experiment, three: list[mlflow_run.RunHandle], tmp_path: Path) -> None:
    options = ["--tracking-uri", experiment.uri, "--experiment-name", "tests"]
    result = CliRunner().invoke(cli, ["compare", "[one]", "two", *options, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "McNemar" in result.output
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    artifacts = f"comparison/{three[0].run_id[:8]}-{three[1].run_id[:8]}"
    logged = {found.path for found in experiment.client.list_artifacts(three[0].run_id, artifacts)}
    assert f"{artifacts}/comparison.html" in logged
    assert "three" in CliRunner().invoke(cli, ["runs", *options]).output.replace("\n", "")
