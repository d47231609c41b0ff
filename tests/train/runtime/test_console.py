"""What a training run says of the time that it takes, away from a terminal, by a clock that the tests set."""

from pathlib import Path

import pytest

from dpo_core.records import StepMetrics
from dpo_core.system import progress
from dpo_core.train.runtime.console import TrainingConsole


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one number is the time now."""
    clock = [0.0]
    monkeypatch.setattr(progress, "now", lambda: clock[0])
    return clock


def steps(display: TrainingConsole, clock: list[float], *numbers: int) -> None:
    """A minute a step, and an hour before step 0."""
    for number in numbers:
        clock[0] += 60 if number else 3600
        display.step(StepMetrics(step=number, time=0.0, values={"dpo_loss": 0.5}))


def test_each_steps_line_tells_the_time_left(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    display = TrainingConsole(tmp_path / "logs.log", total=4, done=0, show_every=10)
    steps(display, clock, 0, 1, 2, 3, 4)
    assert capsys.readouterr().out.splitlines() == [
        "step 0/4 dpo_loss 0.5000",
        "step 1/4 dpo_loss 0.5000, 3 m 0 s left",
        "step 2/4 dpo_loss 0.5000, 2 m 0 s left",
        "step 3/4 dpo_loss 0.5000, 1 m 0 s left",
        "step 4/4 dpo_loss 0.5000",
    ]


def test_a_run_that_continues_counts_its_own_steps_alone(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    steps(TrainingConsole(tmp_path / "logs.log", total=100, done=90, show_every=10), clock, 91, 92)
    assert [line.partition(", ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "9 m 0 s left",
        "8 m 0 s left",
    ]


def test_a_step_that_takes_long_is_spoken_of(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    display = TrainingConsole(tmp_path / "logs.log", total=4, done=0, show_every=10)
    steps(display, clock, 0, 1)
    clock[0] += 20
    display.report_long_step()
    clock[0] += 55
    display.report_long_step()
    assert capsys.readouterr().err == "training: 1 of 4 steps, 1 m 15 s since the last line\n"
