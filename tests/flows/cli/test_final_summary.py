"""The end of a run on the terminal."""

from dataclasses import replace

import pytest

from dpo_core.records import ModelVersion, Promotion
from flows.cli.final_summary import show
from flows.pipeline import PipelineOutcome
from flows.registry.versions import Candidate
from tests.flows import fake


def outcome(candidate: Candidate, failed: int) -> PipelineOutcome:
    version = ModelVersion(
        name="dpo-hhh", version=2, run_id="r", experiment_id="1", tracking_uri="there", model_uri="models:/dpo-hhh/2"
    )
    promotion = Promotion(promoted=True, reason="it is better.", name="dpo-hhh", version=2, champion_version=2)
    trained = candidate.after.model_copy(update={"failed": failed})
    return PipelineOutcome(
        checkpoint=candidate.checkpoint, base=candidate.before, trained=trained, version=version, promotion=promotion
    )


def test_results_decision_and_what_failed_are_told(candidate: Candidate, capsys: pytest.CaptureFixture[str]) -> None:
    show(outcome(candidate, failed=3))
    told = capsys.readouterr().out
    assert "0.400" in told
    assert "0.900" in told
    assert "it is better." in told
    assert "3 of the trained model's samples could not be asked or judged" in told
    show(outcome(candidate, failed=0))
    assert "could not be asked" not in capsys.readouterr().out


def test_every_task_is_in_the_table(candidate: Candidate, capsys: pytest.CaptureFixture[str]) -> None:
    asked = replace(
        candidate,
        before=fake.with_task(candidate.before, accuracy=0.111, stderr=0.022),
        after=fake.with_task(candidate.after, accuracy=0.777, stderr=0.033),
    )
    show(outcome(asked, failed=0))
    [row] = [line for line in capsys.readouterr().out.splitlines() if "caps/" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["caps/accuracy", "0.111 ± 0.022", "0.777 ± 0.033"]


def test_a_task_of_which_the_base_was_not_asked_is_left_out(
    candidate: Candidate, capsys: pytest.CaptureFixture[str]
) -> None:
    show(outcome(replace(candidate, after=fake.with_task(candidate.after, accuracy=0.777)), failed=0))
    assert "caps" not in capsys.readouterr().out


def test_what_exporting_changed_is_told(candidate: Candidate, capsys: pytest.CaptureFixture[str]) -> None:
    export = {"export/nats_a_reply": 0.31, "export/nats_a_reply_low": 0.2, "export/nats_a_reply_high": 0.42}
    told = outcome(candidate, failed=0)
    show(told.model_copy(update={"checkpoint": candidate.checkpoint.model_copy(update={"export": export})}))
    assert "0.310 [0.200, 0.420]" in capsys.readouterr().out


def test_accuracy_beyond_the_exports_noise_is_the_trained_models(
    candidate: Candidate, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "test/accuracy_beyond_noise"
    more = {name: 0.75, f"{name}_low": 0.7, f"{name}_high": 0.8}
    after = candidate.after.model_copy(update={"metrics": candidate.after.metrics | more})
    show(outcome(replace(candidate, after=after), failed=0))
    [row] = [line for line in capsys.readouterr().out.splitlines() if "export noise" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")][1:] == ["", "0.750 [0.700, 0.800]"]
