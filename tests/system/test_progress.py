"""Progress lines of long work, with a clock that the tests set."""

import os
import sys
import time
from pathlib import Path

import pytest

from dpo_core.process import launch
from dpo_core.system import progress
from dpo_core.system.progress import Progress, format_duration, repeating, ticking


class Clock:
    """A clock that the tests advance."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "now", clock)
    return clock


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def work(progress: Progress, clock: Clock, units: int, seconds: float) -> None:
    """Finish ``units`` units of ``seconds`` each."""
    for _ in range(units):
        clock.seconds += seconds
        progress.advance()


def test_work_of_less_than_five_seconds_prints_nothing(clock: Clock, lines: list[str]) -> None:
    work(Progress("scoring", 49, "pairs"), clock, 49, 0.1)
    assert lines == []


def test_a_line_every_ten_seconds_has_the_units_done_and_the_time_left(clock: Clock, lines: list[str]) -> None:
    work(Progress("scoring", 195, "pairs"), clock, 195, 0.2)
    assert lines == [
        "scoring: 25 of 195 pairs, 34 s left",
        "scoring: 75 of 195 pairs, 24 s left",
        "scoring: 125 of 195 pairs, 14 s left",
        "scoring: 175 of 195 pairs, 4 s left",
        "scoring: 195 pairs in 39 s",
    ]


def test_a_long_unit_has_a_line_of_its_own(clock: Clock, lines: list[str]) -> None:
    work(Progress("scoring", 1_200, "pairs"), clock, 3, 60)
    assert lines == [f"scoring: {done} of 1,200 pairs, {left} left" for done, left in enumerate_left(1_200, 3)]


def enumerate_left(total: int, count: int) -> list[tuple[int, str]]:
    return [(done, format_duration((total - done) * 60)) for done in range(1, count + 1)]


def test_nothing_done_or_no_total_prints_the_elapsed_time(clock: Clock, lines: list[str]) -> None:
    waiting, unknown = Progress("generating", 8, "responses"), Progress("reading", None, "rows")
    clock.seconds += 7
    waiting.beat()
    unknown.advance(1_500)
    assert lines == ["generating: 0 of 8 responses, 7 s so far", "reading: 1,500 rows, 7 s so far"]


def test_unfinished_responses_count_in_the_estimate(clock: Clock, lines: list[str]) -> None:
    generating = Progress("generating", 8, "responses")
    clock.seconds += 20
    generating.beat(partial=2.0)
    assert lines == ["generating: 0 of 8 responses, 1 m 0 s left"]


def test_while_nothing_finishes_the_estimate_falls_and_then_becomes_the_elapsed_time(
    clock: Clock, lines: list[str]
) -> None:
    scoring = Progress("scoring", 16, "pairs")
    clock.seconds += 45
    scoring.advance(8)
    for _ in range(3):
        clock.seconds += 20
        scoring.beat()
    lefts = ["45 s left", "25 s left", "5 s left", "1 m 45 s so far"]
    assert lines == [f"scoring: 8 of 16 pairs, {left}" for left in lefts]


def test_units_done_before_do_not_count_as_speed(clock: Clock, lines: list[str]) -> None:
    work(Progress("generating", 100, "responses", done=90), clock, 2, 5)
    assert lines == ["generating: 91 of 100 responses, 45 s left"]


def test_a_note_comes_before_the_time_left(clock: Clock, lines: list[str]) -> None:
    phase = Progress("warm start", 10, "steps")
    clock.seconds += 6
    phase.advance(note="2.310 nats a token")
    assert lines == ["warm start: 1 of 10 steps, 2.310 nats a token, 54 s left"]


def test_the_clock_of_tracked_items_starts_at_the_first_request(clock: Clock, lines: list[str]) -> None:
    tracked = Progress("reading", 3, "rows").track("abc")
    clock.seconds += 1000
    for _ in tracked:
        clock.seconds += 4
    assert lines == ["reading: 2 of 3 rows, 4 s left", "reading: 3 rows in 12 s"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 m 0 s"), (80, "1 m 20 s"), (7_500, "2 h 5 m")]
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_work_without_units_prints_the_elapsed_time(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.01)
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    with ticking("writing the model"):
        wait_for(lambda: len(lines) >= 2)
    count = len(lines)
    time.sleep(0.05)
    assert set(lines) == {"writing the model: 0 s so far"}
    assert len(lines) == count


def test_short_work_without_units_prints_nothing(lines: list[str]) -> None:
    with repeating(lambda: lines.append("")):
        pass
    assert lines == []


def wait_for(condition: object) -> None:
    started = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - started < 10
        time.sleep(0.005)


CHILD = """
from dpo_core.system import progress
progress.QUIET_S = 0.0
progress.Progress("scoring", 2, "pairs").advance()
"""


def test_a_stage_process_prints_to_its_parents_standard_error_without_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert launch.wait([sys.executable, str(tmp_path / "child.py")], environment) == 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err.partition(",")[0]) == ("", "scoring: 1 of 2 pairs")
