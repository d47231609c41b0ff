"""Versions listed, promoted by hand, rolled back, and found by whatever names them; two candidates at once."""

import io
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from dpo_core.config.recipe import Recipe, TrackSettings
from dpo_core.errors import RecipeError, TrackingError
from dpo_core.records import Promotion
from flows.cli import registry_commands
from flows.cli.main import cli
from flows.registry import champion, model_admin
from flows.registry.model_admin import Registry
from flows.registry.versions import Candidate
from flows.reports import run_report
from flows.tracking import mlflow_run
from tests.conftest import shared
from tests.flows import fake
from tests.flows.fake import evaluation
from tests.flows.registry.test_versions import files, promoted, registered


@pytest.fixture
def registry(run: mlflow_run.RunHandle) -> Registry:
    return Registry(run.uri, run.client)


@pytest.fixture
def two(run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path) -> mlflow_run.RunHandle:
    """Version 1 is the champion; version 2 is as good, and no more than a candidate."""
    return filled(run, candidate, tmp_path)


def filled(run: mlflow_run.RunHandle, candidate: Candidate, place: Path) -> mlflow_run.RunHandle:
    promoted(run, registered(run, candidate), candidate)
    twin = replace(candidate, after=evaluation(place / "twin", [False] * 10 + [True] * 90, 0.901))
    promoted(run, registered(run, twin), twin)
    return run


@pytest.fixture(scope="module")
def read_only(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """The same in a store that the tests only read."""
    place = tmp_path_factory.mktemp("two")
    shutil.copyfile(empty_store, place / "mlflow.db")
    track = TrackSettings(tracking_uri=f"sqlite:///{place}/mlflow.db", experiment_name="tests")
    run = filled(mlflow_run.open_run(track, Recipe(track=track), "a-run", "f00d"), fake.candidate(place), place)
    return Registry(run.uri, run.client)


def aliases(run: mlflow_run.RunHandle) -> dict[str, int]:
    return {name: int(number) for name, number in run.client.get_registered_model("dpo-test").aliases.items()}


def by_hand(registry: Registry, which: str, *words: str, forced: str | None = None) -> Promotion:
    return model_admin.promote(registry, model_admin.find_version(registry, which), words, forced)


def shown(made: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=250).print(made)
    return out.getvalue()


def test_the_table_shows_aliases_metrics_and_reasons(
    two: mlflow_run.RunHandle, registry: Registry, candidate: Candidate
) -> None:
    mlflow_run.log_result(two, "after", candidate.after)
    told = shown(model_admin.versions_table(registry, "dpo-test"))
    first, second = (next(line for line in told.splitlines() if f" {n} " in line[:12]) for n in (1, 2))
    assert "champion" in first
    assert "candidate" in second
    assert "0.900" in first
    assert first.rstrip().endswith("yes")
    assert second.rstrip().endswith("no")
    assert re.search("^2: .*for want of evidence", told, re.MULTILINE)
    assert two.run_id[:8] in first


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("1", "1"),
        ("champion", "1"),
        ("@candidate", "2"),
        ("dpo-test/2", "2"),
        ("dpo-test@champion", "1"),
        ("models:/dpo-test@candidate", "2"),
        ("models:/dpo-test/1", "1"),
    ],
)
def test_a_version_goes_by_number_and_alias(read_only: Registry, reference: str, version: str) -> None:
    assert str(model_admin.find_version(read_only, reference).version) == version


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("7", "dpo-test has no version '7'"),
        ("champoin", "Did you mean champion?"),
        ("dpo-tset@champion", "Did you mean dpo-test?"),
        ("a/b/c", "is no version"),
    ],
)
def test_a_version_that_is_not_there(read_only: Registry, reference: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told.replace("?", r"\?")):
        model_admin.find_version(read_only, reference)


def test_an_empty_registry_says_how_to_fill_it(registry: Registry) -> None:
    with pytest.raises(RecipeError, match=r"There is no registered model in .*dpo run registers one"):
        registry_commands.models(None, registry.uri)


def test_several_models_must_be_told_apart(two: mlflow_run.RunHandle, registry: Registry) -> None:
    two.client.create_registered_model("other")
    with pytest.raises(RecipeError, match="There are 2 registered models"):
        model_admin.resolve_model_name(registry, None)
    two.client.create_registered_model("dpo-lock.other")
    assert registry.names() == ["dpo-test", "other"]


def test_by_hand_through_the_gates(two: mlflow_run.RunHandle, registry: Registry) -> None:
    assert not by_hand(registry, "2").promoted
    assert aliases(two)["champion"] == 1
    decided = by_hand(registry, "2", "require_improvement=false")
    assert (decided.promoted, decided.champion_version) == (True, 2)
    assert aliases(two) == {"candidate": 2, "champion": 2, "previous": 1}
    assert "not being worse" in two.client.get_model_version("dpo-test", "2").tags["dpo.promotion"]


def test_by_hand_the_gates_are_those_of_the_versions_recipe(two: mlflow_run.RunHandle, registry: Registry) -> None:
    run = two.client.get_run(two.run_id)
    run.data.params["min_test_accuracy"] = "0.95"
    assert model_admin.promotion_settings(run, []).min_test_accuracy == 0.95
    assert model_admin.promotion_settings(run, ["min_test_accuracy=none"]).min_test_accuracy is None


def test_force_records_why_and_what_the_gates_said(two: mlflow_run.RunHandle, registry: Registry) -> None:
    decided = by_hand(registry, "2", forced="the customer wants it")
    tags = two.client.get_model_version("dpo-test", "2").tags
    assert decided.promoted
    assert aliases(two) == {"candidate": 2, "champion": 2, "previous": 1}
    assert tags["dpo.gate.forced"] == "passed: the customer wants it"
    assert tags["dpo.gate.against_champion"].startswith("failed: ")
    assert "promoted by hand (the customer wants it), whatever the gates say: version 2 is not" in decided.reason


def test_force_needs_a_reason(registry: Registry) -> None:
    options = {"force": True, "reason": None, "tracking_uri": registry.uri, "name": None}
    with pytest.raises(RecipeError, match="Add --reason"):
        registry_commands.promote("1", [], options)


def test_held_back_is_an_error_for_scripts(
    two: mlflow_run.RunHandle, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"force": False, "reason": None, "tracking_uri": registry.uri, "name": None}
    with pytest.raises(RecipeError, match="version 2 is not promoted for want of evidence"):
        registry_commands.promote("2", [], options)
    assert "against champion failed: " in capsys.readouterr().out


def test_rollback_and_back_again(two: mlflow_run.RunHandle, registry: Registry) -> None:
    by_hand(registry, "2", forced="try it")
    told = model_admin.rollback(registry, "dpo-test", "it swears.")
    assert told == "version 1 is the champion again, rolled back from version 2 (it swears)."
    assert aliases(two) == {"candidate": 2, "champion": 1, "previous": 2}
    tags = {n: two.client.get_model_version("dpo-test", n).tags for n in ("1", "2")}
    assert (tags["1"]["dpo.promotion"], tags["2"]["dpo.promoted"]) == (told, "false")
    model_admin.rollback(registry, "dpo-test", None)
    assert aliases(two)["champion"] == 2


def test_rollback_without_a_previous_one(two: mlflow_run.RunHandle, registry: Registry) -> None:
    with pytest.raises(RecipeError, match="its champion is version 1, and there is no other version with the alias"):
        model_admin.rollback(registry, "dpo-test", None)
    assert aliases(two)["champion"] == 1


def test_rollback_when_the_previous_version_was_deleted(two: mlflow_run.RunHandle, registry: Registry) -> None:
    by_hand(registry, "2", forced="try it")
    two.client.delete_model_version("dpo-test", "1")
    with pytest.raises(RecipeError, match="cannot be rolled back"):
        model_admin.rollback(registry, "dpo-test", None)


def test_two_candidates_at_once_are_decided_one_after_the_other(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path
) -> None:
    """Both are better than the champion and neither than the other: only the first to be decided may win."""
    weak = replace(candidate, after=evaluation(tmp_path / "weak", [False] * 50 + [True] * 50, 0.6))
    promoted(run, registered(run, weak), weak)
    rivals = [
        replace(candidate, after=evaluation(tmp_path / name, [False] * 10 + [True] * 90, accuracy))
        for name, accuracy in (("left", 0.9), ("right", 0.901))
    ]
    versions = [registered(run, rival) for rival in rivals]
    results: list[Promotion] = []
    start = threading.Barrier(2)

    def decide(index: int) -> None:
        handle = replace(run, client=mlflow_run.connect(run.uri))
        start.wait()
        results.append(promoted(handle, versions[index], rivals[index]))

    threads = [threading.Thread(target=decide, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    winner, loser = sorted(results, key=lambda one: not one.promoted)
    assert (winner.promoted, loser.promoted) == (True, False)
    assert f"against version {winner.version}" in loser.reason
    assert loser.champion_version == winner.version
    assert aliases(run) | {"candidate": 0} == {"candidate": 0, "champion": winner.version, "previous": 1}


def test_an_approval_is_void_when_the_champion_changes_meanwhile(
    two: mlflow_run.RunHandle, registry: Registry, candidate: Candidate, tmp_path: Path
) -> None:
    best = replace(candidate, after=evaluation(tmp_path / "best", [True] * 100, 0.99))
    version = registered(two, best)

    def approved(_: object) -> champion.Gate:
        by_hand(registry, "2", forced="meanwhile")
        return champion.Gate("approval", True, "Ada approved it.")

    measured = champion.measured_version(version, best.before, best.after)
    decided = champion.promote(two, measured, model_admin.PromoteSettings(), approved)
    assert not decided.promoted
    assert "the champion became version 2 while approval was pending" in decided.reason
    assert aliases(two)["champion"] == 2


def test_approval_is_the_last_gate(two: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path) -> None:
    best = replace(candidate, after=evaluation(tmp_path / "best", [True] * 100, 0.99))
    measured = champion.measured_version(registered(two, best), best.before, best.after)
    no = champion.Gate("approval", False, "Ada declined it (too chatty).")
    decided = champion.promote(two, measured, model_admin.PromoteSettings(), lambda _: no)
    assert decided.reason.startswith(
        "The alias is left alone, Ada declined it (too chatty), although version 3 would be"
    )
    assert aliases(two)["champion"] == 1
    decided = champion.promote(
        two, measured, model_admin.PromoteSettings(), lambda _: replace(no, passed=True, reason="Yes.")
    )
    assert decided.promoted
    assert decided.gates["approval"] == "passed: Yes."


def test_no_approval_is_requested_for_a_version_that_fails_a_gate(
    two: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path
) -> None:
    worse = replace(candidate, after=evaluation(tmp_path / "worse", [False] * 100, 0.5))
    measured = champion.measured_version(registered(two, worse), worse.before, worse.after)
    decided = champion.promote(two, measured, model_admin.PromoteSettings(), lambda _: pytest.fail("asked"))
    assert not decided.promoted


def test_a_champion_whose_files_are_gone_is_an_error(
    two: mlflow_run.RunHandle, registry: Registry, tmp_path: Path
) -> None:
    for path in files(two, tmp_path):
        if path.name == "measured.json":
            path.unlink()
    with pytest.raises(TrackingError, match="comes without its measurements"):
        by_hand(registry, "2")


def test_the_commands_as_they_are_typed(two: mlflow_run.RunHandle, registry: Registry) -> None:
    def typed(*words: str) -> str:
        told = CliRunner().invoke(cli, [*words, "--tracking-uri", registry.uri], catch_exceptions=False)
        assert told.exit_code == 0, told.output
        return told.output.replace("\n", " ")

    assert "champion" in typed("models")
    assert "dpo-test" in typed("models", "dpo-test")
    assert "not being worse" in typed("promote", "2", "require_improvement=false", "--name", "dpo-test")
    assert "promoted by hand (it was a mistake)" in typed("promote", "--force", "--reason", "it was a mistake", "1")
    assert "version 2 is the champion again" in typed("rollback", "--reason", "no")
    with pytest.raises(RecipeError, match="Did you mean min_test_accuracy"):
        typed("promote", "1", "min_tset_accuracy=0.5")


def test_a_model_without_versions(registry: Registry) -> None:
    registry.client.create_registered_model("empty")
    assert "no versions: dpo run registers them" in shown(model_admin.versions_table(registry, "empty"))
    with pytest.raises(RecipeError, match=r"empty has no version '1'.*There are no versions yet"):
        model_admin.find_version(registry, "1")


def test_a_later_decision_replaces_the_first_in_the_description(
    two: mlflow_run.RunHandle, registry: Registry, candidate: Candidate, recipe: Recipe
) -> None:
    measured = champion.measured_version(
        model_admin.version_record(two, model_admin.find_version(registry, "2")), candidate.before, candidate.after
    )
    run_report.set_description(two, recipe, candidate, champion.promote(two, measured, model_admin.PromoteSettings()))
    first = two.client.get_run(two.run_id).data.tags["mlflow.note.content"]
    assert "for want of evidence" in first
    by_hand(registry, "2", forced=r"it \g<0> is better")
    second = two.client.get_run(two.run_id).data.tags["mlflow.note.content"]
    assert second.count("Version 2 of **dpo-test**.") == 1
    assert r"promoted by hand (it \g<0> is better)" in second
    assert r"- forced passed: it \g<0> is better" in second
    assert second.split("Repeat it with")[1] == first.split("Repeat it with")[1]
    assert second.split("Version 2")[0] == first.split("Version 2")[0]


@pytest.mark.slow
def test_generate_takes_a_registered_version(run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    for path in shared("models", "stories260K").iterdir():
        (candidate.checkpoint.path / path.name).write_bytes(path.read_bytes())
    registered(run, candidate)

    def generate(reference: str) -> "subprocess.CompletedProcess[str]":
        words = ["generate", reference, "Once upon a time", "--max-new-tokens", "8"]
        command = [sys.executable, "-c", "from flows.cli.main import main; main()", *words]
        environment = os.environ | {"MLFLOW_TRACKING_URI": run.uri}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)

    told = generate("models:/dpo-test@candidate")
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip()
    told = generate("models:/dpo-test@champion")
    assert told.returncode == 2
    assert told.stderr.startswith("error: dpo-test has no version 'champion'.")
