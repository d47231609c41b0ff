"""A registered version is complete and found again; a failed registration leaves nothing behind."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest

from dpo_core.config.recipe import DataSettings, ModelSettings, PromoteSettings, Recipe
from dpo_core.errors import RecipeError, TrackingError
from dpo_core.records import ModelVersion, Promotion
from flows.registry import versions
from flows.registry.champion import measured_version, promote
from flows.registry.versions import Candidate, VersionNotes, register, registered_model_name
from flows.tracking import mlflow_run
from tests.conftest import shared
from tests.flows.fake import evaluation, served, wait_for


def notes() -> VersionNotes:
    return VersionNotes({"dpo.data": "d"}, "### Results")


MESSAGES = [{"role": "user", "content": "Once upon a time"}]


def registered(run: mlflow_run.RunHandle, candidate: Candidate) -> Any:
    return register(run, candidate, "dpo-test", notes).record


def promoted(run: mlflow_run.RunHandle, version: ModelVersion, candidate: Candidate, **rule: Any) -> Promotion:
    return promote(run, measured_version(version, candidate.before, candidate.after), PromoteSettings(**rule))


def models(run: mlflow_run.RunHandle) -> list[Any]:
    return list(run.client.search_logged_models([run.experiment_id]))


def files(run: mlflow_run.RunHandle, tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "mlruns" / "artifacts").rglob("models/**/*") if path.is_file()]


def test_a_version_has_tags_metrics_and_an_alias(run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    mlflow_run.log_result(run, "after", candidate.after)
    version = registered(run, candidate)
    found = run.client.get_model_version("dpo-test", str(version.version))
    assert (version.version, version.run_id, version.model_uri) == (1, run.run_id, "models:/dpo-test/1")
    assert found.tags["dpo.data"] == "d"
    assert found.aliases == ["candidate"]
    assert found.description == "### Results"
    model = run.client.get_logged_model(versions.logged_model_id(found))
    metrics = {metric.key: metric for metric in model.metrics}
    assert metrics["after/prompt_strict_acc"].value == 0.9
    of_pairs = metrics["after/test/accuracy"]
    assert (of_pairs.dataset_name, of_pairs.dataset_digest) == ("hhh test", "d")
    assert [output.model_id for output in run.client.get_run(run.run_id).outputs.model_outputs] == [model.model_id]


def test_no_run_is_left_active(run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    registered(run, candidate)
    assert mlflow.active_run() is None
    assert len(run.client.search_runs([run.experiment_id])) == 1


def test_torch_stays_out_of_the_flows_process() -> None:
    modules = (
        "registry.versions registry.champion tracking.journal_follower reports.run_report registry.served_model cli.ui"
    )
    imports = f"import sys, {', '.join(f'flows.{name}' for name in modules.split())}"
    subprocess.run([sys.executable, "-c", f"{imports}; sys.exit('torch' in sys.modules)"], check=True)


def test_the_same_candidate_is_the_same_version(run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    first = register(run, candidate, "dpo-test", notes)
    second = register(run, candidate, "dpo-test", notes)
    assert (first.cached, second.cached) == (False, True)
    assert first.record == second.record
    assert len(models(run)) == 1


def test_another_measurement_is_another_version(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path
) -> None:
    registered(run, candidate)
    again = replace(candidate, after=evaluation(tmp_path / "again", [True] * 100, 0.95))
    assert registered(run, again).version == 2


@pytest.mark.parametrize("lost", ["model.safetensors", "measured.json"])
def test_a_version_that_lost_a_file_is_registered_again(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path, lost: str
) -> None:
    registered(run, candidate)
    [found] = [path for path in files(run, tmp_path) if path.name == lost]
    found.unlink()
    again = register(run, candidate, "dpo-test", notes)
    assert (again.cached, again.record.version) == (False, 2)


@pytest.mark.parametrize(
    "fault", ["log_model_artifacts", "create_model_version", "set_registered_model_alias", "log_outputs"]
)
def test_a_step_that_fails_leaves_nothing(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("cut off")

    monkeypatch.setattr(run.client, fault, fail)
    with pytest.raises(TrackingError, match="cut off"):
        registered(run, candidate)
    monkeypatch.undo()
    assert run.client.search_registered_models() == []
    assert models(run) == []
    assert files(run, tmp_path) == []
    assert registered(run, candidate).version == 1


def test_a_failure_keeps_the_versions_that_were_there(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(run, candidate)
    again = replace(candidate, after=evaluation(tmp_path / "again", [True] * 100, 0.95))
    monkeypatch.setattr(run.client, "log_outputs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        registered(run, again)
    assert [version.version for version in run.client.search_model_versions("name = 'dpo-test'")] == [1]
    assert register(run, candidate, "dpo-test", notes).cached


def test_the_model_of_a_killed_attempt_is_deleted(run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    run.client.create_logged_model(run.experiment_id, name="dpo-test", source_run_id=run.run_id)
    version = registered(run, candidate)
    found = run.client.get_model_version("dpo-test", str(version.version))
    assert [model.model_id for model in models(run)] == [versions.logged_model_id(found)]


def test_a_model_that_was_uploaded_before_it_was_measured_is_the_versions(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path
) -> None:
    early = versions.find_or_upload_model(run, candidate.checkpoint, "dpo-test")
    assert versions.find_or_upload_model(run, candidate.checkpoint, "dpo-test").model_id == early.model_id
    version = registered(run, candidate)
    found = run.client.get_model_version("dpo-test", str(version.version))
    assert versions.logged_model_id(found) == early.model_id
    assert register(run, candidate, "dpo-test", notes).cached
    assert models(run)[0].tags["dpo.checkpoint"] == "c"


@pytest.mark.parametrize("harm", ["another checkpoint", "a lost file", "another name"])
def test_a_model_that_does_not_fit_is_uploaded_anew(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path, harm: str
) -> None:
    checkpoint = candidate.checkpoint.model_copy(update={"fingerprint": "x"} if harm == "another checkpoint" else {})
    versions.find_or_upload_model(run, checkpoint, "other" if harm == "another name" else "dpo-test")
    if harm == "a lost file":
        [found] = [path for path in files(run, tmp_path) if path.name == "model.safetensors"]
        found.unlink()
    version = registered(run, candidate)
    found_version = run.client.get_model_version("dpo-test", str(version.version))
    assert [model.model_id for model in models(run)] == [versions.logged_model_id(found_version)]
    assert len([path for path in files(run, tmp_path) if path.name == "model.safetensors"]) == 1


def test_the_default_name_has_dataset_and_model() -> None:
    recipe = Recipe(data=DataSettings(dataset="some/file.v2.jsonl.gz"), model=ModelSettings(model_name="meta/Ll:ama"))
    assert registered_model_name(recipe) == "dpo-file-Ll_ama"


@pytest.mark.parametrize("name", ["a/b", "a:b", "", " ", "it's"])
def test_a_name_that_the_registry_does_not_accept(name: str) -> None:
    with pytest.raises(RecipeError, match="registered_model_name="):
        registered_model_name(Recipe(promote=PromoteSettings(registered_model_name=name)))


def test_promotion_moves_the_aliases_and_says_why(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path
) -> None:
    first = registered(run, candidate)
    decided = promoted(run, first, candidate)
    assert (decided.promoted, decided.champion_version) == (True, 1)
    better = replace(candidate, after=evaluation(tmp_path / "better", [True] * 100, 0.95))
    second = registered(run, better)
    decided = promoted(run, second, better)
    assert decided.promoted
    assert "version 2 is promoted over version 1: it follows 100.0% of 100 prompts against 90.0%" in decided.reason
    assert run.client.get_registered_model("dpo-test").aliases == {"candidate": 2, "champion": 2, "previous": 1}
    assert run.client.get_model_version("dpo-test", "2").tags["dpo.promotion"] == decided.reason
    assert run.client.get_run(run.run_id).data.tags["dpo.promotion"] == decided.reason


def test_a_champion_that_is_better_stays(run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path) -> None:
    promoted(run, registered(run, candidate), candidate)
    worse = replace(candidate, after=evaluation(tmp_path / "worse", [False] * 50 + [True] * 50, 0.9))
    decided = promoted(run, registered(run, worse), worse)
    assert (decided.promoted, decided.champion_version) == (False, 1)
    assert "being worse than version 1" in decided.reason


def test_a_champion_measured_on_other_prompts_stays(
    run: mlflow_run.RunHandle, candidate: Candidate, tmp_path: Path
) -> None:
    promoted(run, registered(run, candidate), candidate)
    other = replace(candidate, after=evaluation(tmp_path / "other", [True] * 100, 0.99, prompts="others"))
    decided = promoted(run, registered(run, other), other)
    assert not decided.promoted
    assert "version 1 was measured on other prompts" in decided.reason


def test_deciding_again_changes_nothing(run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    version = registered(run, candidate)
    decided = promoted(run, version, candidate)
    assert promoted(run, version, candidate) == decided


def test_without_auto_promote_the_comparison_is_recorded(run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    decided = promoted(run, registered(run, candidate), candidate, auto_promote=False)
    assert (decided.promoted, decided.champion_version) == (False, None)
    assert decided.reason.startswith("The alias is left alone (auto_promote=false), although version 1 would be")
    assert run.client.get_registered_model("dpo-test").aliases == {"candidate": 1}


def test_a_champion_without_measurements_is_an_error(run: mlflow_run.RunHandle, candidate: Candidate) -> None:
    run.client.create_registered_model("dpo-test")
    foreign = run.client.create_model_version("dpo-test", source="/tmp/somewhere")
    run.client.set_registered_model_alias("dpo-test", "champion", foreign.version)
    with pytest.raises(TrackingError, match="Version 1 of dpo-test comes without its measurements"):
        promoted(run, registered(run, candidate), candidate)


@pytest.fixture
def real(run: mlflow_run.RunHandle, candidate: Candidate) -> Candidate:
    """The candidate with weights that can answer."""
    for path in shared("models", "stories260K").iterdir():
        (candidate.checkpoint.path / path.name).write_bytes(path.read_bytes())
    return candidate


LOAD = """
import sys, mlflow.pyfunc, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/dpo-test@candidate")
one = [{"role": "user", "content": "Once upon a time"}]
answers = model.predict({"messages": one}, params={"max_new_tokens": 6})
table = model.predict(pd.DataFrame({"messages": [one, one]}), params={"max_new_tokens": 6})
assert len(answers) == 1 and answers[0].strip() and table == answers * 2, (answers, table)
import dpo_core
print(dpo_core.__file__)
"""


@pytest.mark.slow
def test_pyfunc_loads_it_with_its_own_code(real: Candidate, run: mlflow_run.RunHandle, tmp_path: Path) -> None:
    """In a process that has never heard of the repository, as the model's own copy of dpo_core shows."""
    registered(run, real)
    command = [sys.executable, "-I", "-c", LOAD, run.uri]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert str(tmp_path / "mlruns" / "artifacts") in done.stdout


@pytest.mark.slow
def test_models_serve_answers_a_conversation(real: Candidate, run: mlflow_run.RunHandle, free_port: int) -> None:
    registered(run, real)
    options = ["--env-manager", "local", "--port", str(free_port)]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/dpo-test/1", *options]
    # MLflow starts uvicorn by name: the environment's programs must be on the path, as activating it puts them.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": run.uri, "PATH": path}
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{free_port}/ping") is not None, 120)
        [text] = answers(f"http://127.0.0.1:{free_port}/invocations", {"messages": MESSAGES, "max_new_tokens": 8})
        assert isinstance(text, str)
        assert text.strip()
    finally:
        server.terminate()
        server.wait(20)


def answers(url: str, body: dict[str, Any] | None = None) -> Any:
    """What a server says, None if it does not."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read().strip() or b"{}")
    except urllib.error.URLError:
        return None


@pytest.mark.slow
def test_a_server_registers_and_promotes_as_sqlite_does(recipe: Recipe, candidate: Candidate, free_port: int) -> None:
    with served(recipe.track, free_port) as track:
        handle = mlflow_run.open_run(track, recipe, "a-run", "f00d")
        mlflow_run.log_result(handle, "after", candidate.after)
        version = register(handle, candidate, "dpo-test", notes).record
        assert promoted(handle, version, candidate).champion_version == 1
        assert register(handle, candidate, "dpo-test", notes).cached
        assert versions.find_version(handle.client, "dpo-test", candidate) is not None
