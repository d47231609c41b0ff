"""Plot of the share of instructions followed, by kind."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from flows.registry.versions import Candidate
from flows.reports.instruction_plot import (
    TITLE,
    InstructionShare,
    draw_bars,
    draw_instructions,
    instruction_figure,
    shares_by_kind,
)
from tests.flows import fake


def test_shares_are_by_kind_and_leave_out_failed_samples(tmp_path: Path) -> None:
    result = fake.evaluation(tmp_path / "base", [True, False, True, True], 0.5)
    lines = (result.path / "outcomes.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace('"error": null', '"error": "no memory"')
    (result.path / "outcomes.jsonl").write_text("\n".join(lines) + "\n")
    assert shares_by_kind(result) == {"no_comma": (2, 1.0), "title": (1, 1.0)}


def test_bars_are_the_shares_in_the_given_order(candidate: Candidate) -> None:
    shares = {"base": shares_by_kind(candidate.before), "trained": shares_by_kind(candidate.after)}
    axis = Figure().subplots()
    draw_bars(axis, ["title", "no_comma"], shares)
    trained, base = ([bar.get_width() for bar in bars] for bars in axis.containers if hasattr(bars, "patches"))
    assert trained == [shares["trained"]["title"].share, shares["trained"]["no_comma"].share]
    assert base == [shares["base"]["title"].share, shares["base"]["no_comma"].share]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["title (50)", "no_comma (50)"]


def test_shares_of_zero_and_of_all_have_an_interval() -> None:
    """The interval of the share 0 or 1 of n has the width z² / (n + z²)."""
    z = 1.959964
    assert InstructionShare(10, 0.0).error_bar == pytest.approx((0, z**2 / (10 + z**2)))
    assert InstructionShare(10, 1.0).error_bar == pytest.approx((z**2 / (10 + z**2), 0))
    assert all(min(InstructionShare(count, share).error_bar) >= 0 for count in range(1, 200) for share in (0.0, 1.0))
    below, above = InstructionShare(50, 0.4).error_bar
    assert (0.4 - below, 0.4 + above) == pytest.approx((0.2761, 0.5382), abs=1e-4)


@pytest.mark.parametrize("kinds", [1, 4, 25])
def test_all_text_is_inside_the_figure_with_long_names(kinds: int) -> None:
    followed = {f"number_highlighted_sections_{number}": InstructionShare(1234, number % 2) for number in range(kinds)}
    figure = instruction_figure([*followed], {"base": followed, "trained": followed})
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert TITLE in [text.get_text() for text in texts]
    bounds = figure.bbox
    for box in (text.get_window_extent() for text in texts):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= bounds.x1
        assert box.y1 <= bounds.y1
    [title], [legend] = [text for text in texts if text.get_text() == TITLE], figure.legends
    assert not title.get_window_extent().overlaps(legend.get_window_extent())
    assert legend.get_window_extent().y0 >= figure.axes[0].get_window_extent().y1


def test_plot_is_drawn_only_with_outcomes(candidate: Candidate, tmp_path: Path) -> None:
    draw_instructions(candidate.before, candidate.after, tmp_path / "instructions.png")
    assert imread(tmp_path / "instructions.png").std() > 0.05
    (candidate.before.path / "outcomes.jsonl").write_text("")
    draw_instructions(candidate.before, candidate.after, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
