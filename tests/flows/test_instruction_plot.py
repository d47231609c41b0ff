"""Base against trained by kind of instruction: what is drawn is what was judged."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from flows.instruction_plot import by_kind, draw, instructions
from flows.registry import Candidate
from tests.flows import fake


def test_shares_are_by_kind_and_leave_out_what_was_not_judged(tmp_path: Path) -> None:
    result = fake.evaluation(tmp_path / "base", [True, False, True, True], 0.5)
    lines = (result.path / "outcomes.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace('"error": null', '"error": "no memory"')
    (result.path / "outcomes.jsonl").write_text("\n".join(lines) + "\n")
    assert by_kind(result) == {"no_comma": (2, 1.0), "title": (1, 1.0)}


def test_bars_are_the_shares_the_largest_gain_on_top(candidate: Candidate) -> None:
    told = {"base": by_kind(candidate.before), "trained": by_kind(candidate.after)}
    axis = Figure().subplots()
    draw(axis, ["title", "no_comma"], told)
    trained, base = ([bar.get_width() for bar in bars] for bars in axis.containers if hasattr(bars, "patches"))
    assert trained == [told["trained"]["title"].share, told["trained"]["no_comma"].share]
    assert base == [told["base"]["title"].share, told["base"]["no_comma"].share]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["title (50)", "no_comma (50)"]
    assert told["base"]["title"].error == pytest.approx((0.4 * 0.6 / 50) ** 0.5)


def test_the_picture_is_drawn_where_prompts_were_asked(candidate: Candidate, tmp_path: Path) -> None:
    instructions(candidate.before, candidate.after, tmp_path / "instructions.png")
    assert imread(tmp_path / "instructions.png").std() > 0.05
    (candidate.before.path / "outcomes.jsonl").write_text("")
    instructions(candidate.before, candidate.after, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
