"""Final summary of a run on the terminal."""

from dataclasses import replace

import pytest

from dpo_core.records import ModelVersion, Promotion
from flows.cli.final_summary import print_summary
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


def test_summary_has_results_decision_and_failed_samples(
    candidate: Candidate, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(outcome(candidate, failed=3))
    output = capsys.readouterr().out
    assert "0.400" in output
    assert "0.900" in output
    assert "it is better." in output
    assert "3 of the trained model's samples could not be generated or scored" in output
    print_summary(outcome(candidate, failed=0))
    assert "could not be generated" not in capsys.readouterr().out


def test_every_task_is_in_the_table(candidate: Candidate, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated = replace(
        candidate,
        before=fake.with_task(candidate.before, accuracy=0.111, stderr=0.022),
        after=fake.with_task(candidate.after, accuracy=0.777, stderr=0.033),
    )
    print_summary(outcome(evaluated, failed=0))
    [row] = [line for line in capsys.readouterr().out.splitlines() if "caps/" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["caps/accuracy", "0.111 ± 0.022", "0.777 ± 0.033"]


def test_task_without_base_results_is_left_out(candidate: Candidate, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(outcome(replace(candidate, after=fake.with_task(candidate.after, accuracy=0.777)), failed=0))
    assert "caps" not in capsys.readouterr().out


def test_summary_has_the_change_by_the_export(candidate: Candidate, capsys: pytest.CaptureFixture[str]) -> None:
    export = {"export/nats_a_reply": 0.31, "export/nats_a_reply_low": 0.2, "export/nats_a_reply_high": 0.42}
    finished = outcome(candidate, failed=0)
    print_summary(
        finished.model_copy(update={"checkpoint": candidate.checkpoint.model_copy(update={"export": export})})
    )
    assert "0.310 [0.200, 0.420]" in capsys.readouterr().out


def test_accuracy_with_export_noise_as_ties_is_for_the_trained_model_only(
    candidate: Candidate, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "test/accuracy_beyond_noise"
    more = {name: 0.75, f"{name}_low": 0.7, f"{name}_high": 0.8}
    after = candidate.after.model_copy(update={"metrics": candidate.after.metrics | more})
    print_summary(outcome(replace(candidate, after=after), failed=0))
    [row] = [line for line in capsys.readouterr().out.splitlines() if "export noise" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")][1:] == ["", "0.750 [0.700, 0.800]"]
