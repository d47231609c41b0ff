"""Base against trained by kind of instruction: what is drawn is what was judged."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from flows.registry.versions import Candidate
from flows.reports.instruction_plot import TITLE, Followed, by_kind, draw, instructions, picture
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


def test_no_share_is_certain() -> None:
    """The bounds of 0 and of 1 of n are n / (n + z²) away from the other end."""
    z = 1.959964
    assert Followed(10, 0.0).around == pytest.approx((0, z**2 / (10 + z**2)))
    assert Followed(10, 1.0).around == pytest.approx((z**2 / (10 + z**2), 0))
    assert all(min(Followed(count, share).around) >= 0 for count in range(1, 200) for share in (0.0, 1.0))
    below, above = Followed(50, 0.4).around
    assert (0.4 - below, 0.4 + above) == pytest.approx((0.2761, 0.5382), abs=1e-4)


@pytest.mark.parametrize("kinds", [1, 4, 25])
def test_everything_is_inside_the_picture_however_long_names_are(kinds: int) -> None:
    followed = {f"number_highlighted_sections_{number}": Followed(1234, number % 2) for number in range(kinds)}
    figure = picture([*followed], {"base": followed, "trained": followed})
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert TITLE in [text.get_text() for text in texts]
    whole = figure.bbox
    for box in (text.get_window_extent() for text in texts):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= whole.x1
        assert box.y1 <= whole.y1
    [title], [legend] = [text for text in texts if text.get_text() == TITLE], figure.legends
    assert not title.get_window_extent().overlaps(legend.get_window_extent())
    assert legend.get_window_extent().y0 >= figure.axes[0].get_window_extent().y1


def test_the_picture_is_drawn_where_prompts_were_asked(candidate: Candidate, tmp_path: Path) -> None:
    instructions(candidate.before, candidate.after, tmp_path / "instructions.png")
    assert imread(tmp_path / "instructions.png").std() > 0.05
    (candidate.before.path / "outcomes.jsonl").write_text("")
    instructions(candidate.before, candidate.after, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
