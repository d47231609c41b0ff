"""The end of a run on the terminal."""

import pytest

from dpo_core.records import ModelVersion, Promotion
from flows.pipeline import Outcome
from flows.registry import Candidate
from flows.summary import show


def outcome(candidate: Candidate, failed: int) -> Outcome:
    version = ModelVersion(
        name="dpo-hhh", version=2, run_id="r", experiment_id="1", tracking_uri="there", model_uri="models:/dpo-hhh/2"
    )
    promotion = Promotion(promoted=True, reason="it is better.", name="dpo-hhh", version=2, champion_version=2)
    trained = candidate.after.model_copy(update={"failed": failed})
    return Outcome(
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
