"""What is said of work that takes long, by a clock that the tests set."""

import os
import sys
import time
from pathlib import Path

import pytest

from dpo_core.process import launch
from dpo_core.system import progress
from dpo_core.system.progress import Progress, duration, repeating, ticking


class Clock:
    """A clock that goes on when it is told to."""

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
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    return said


def work(progress: Progress, clock: Clock, units: int, seconds: float) -> None:
    """So many units, each of so many seconds."""
    for _ in range(units):
        clock.seconds += seconds
        progress.advance()


def test_what_is_done_in_less_than_five_seconds_is_not_spoken_of(clock: Clock, said: list[str]) -> None:
    work(Progress("scoring", 49, "pairs"), clock, 49, 0.1)
    assert said == []


def test_a_line_each_ten_seconds_tells_how_many_are_done_and_the_time_left(clock: Clock, said: list[str]) -> None:
    work(Progress("scoring", 195, "pairs"), clock, 195, 0.2)
    assert said == [
        "scoring: 25 of 195 pairs, 34 s left",
        "scoring: 75 of 195 pairs, 24 s left",
        "scoring: 125 of 195 pairs, 14 s left",
        "scoring: 175 of 195 pairs, 4 s left",
        "scoring: 195 pairs in 39 s",
    ]


def test_a_unit_that_takes_long_has_a_line_of_its_own(clock: Clock, said: list[str]) -> None:
    work(Progress("scoring", 1_200, "pairs"), clock, 3, 60)
    assert said == [f"scoring: {done} of 1,200 pairs, {left} left" for done, left in enumerate_left(1_200, 3)]


def enumerate_left(total: int, count: int) -> list[tuple[int, str]]:
    return [(done, duration((total - done) * 60)) for done in range(1, count + 1)]


def test_nothing_done_or_no_total_tells_the_time_gone(clock: Clock, said: list[str]) -> None:
    waiting, unknown = Progress("generating", 8, "answers"), Progress("reading", None, "rows")
    clock.seconds += 7
    waiting.beat()
    unknown.advance(1_500)
    assert said == ["generating: 0 of 8 answers, 7 s so far", "reading: 1,500 rows, 7 s so far"]


def test_answers_that_are_begun_count_in_the_estimate(clock: Clock, said: list[str]) -> None:
    generating = Progress("generating", 8, "answers")
    clock.seconds += 20
    generating.beat(partial=2.0)
    assert said == ["generating: 0 of 8 answers, 1 m 0 s left"]


def test_while_nothing_gets_done_the_estimate_falls_and_then_gives_way_to_the_time_gone(
    clock: Clock, said: list[str]
) -> None:
    scoring = Progress("scoring", 16, "pairs")
    clock.seconds += 45
    scoring.advance(8)
    for _ in range(3):
        clock.seconds += 20
        scoring.beat()
    lefts = ["45 s left", "25 s left", "5 s left", "1 m 45 s so far"]
    assert said == [f"scoring: 8 of 16 pairs, {left}" for left in lefts]


def test_what_was_done_before_does_not_count_as_speed(clock: Clock, said: list[str]) -> None:
    work(Progress("generating", 100, "answers", done=90), clock, 2, 5)
    assert said == ["generating: 91 of 100 answers, 45 s left"]


def test_a_note_stands_before_the_time_left(clock: Clock, said: list[str]) -> None:
    phase = Progress("warm start", 10, "steps")
    clock.seconds += 6
    phase.advance(note="2.310 nats a token")
    assert said == ["warm start: 1 of 10 steps, 2.310 nats a token, 54 s left"]


def test_items_are_counted_from_the_moment_the_first_is_asked_for(clock: Clock, said: list[str]) -> None:
    tracked = Progress("reading", 3, "rows").track("abc")
    clock.seconds += 1000
    for _ in tracked:
        clock.seconds += 4
    assert said == ["reading: 2 of 3 rows, 4 s left", "reading: 3 rows in 12 s"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 m 0 s"), (80, "1 m 20 s"), (7_500, "2 h 5 m")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_work_that_cannot_be_counted_ticks(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.01)
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    with ticking("writing the model"):
        wait_for(lambda: len(said) >= 2)
    count = len(said)
    time.sleep(0.05)
    assert set(said) == {"writing the model: 0 s so far"}
    assert len(said) == count


def test_short_work_does_not_tick(said: list[str]) -> None:
    with repeating(lambda: said.append("")):
        pass
    assert said == []


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


def test_lines_of_a_stages_process_come_where_its_parents_go_no_terminal_needed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert launch.wait([sys.executable, str(tmp_path / "child.py")], environment) == 0
    told = capfd.readouterr()
    assert (told.out, told.err.partition(",")[0]) == ("", "scoring: 1 of 2 pairs")
