"""Plot of training curves."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from dpo_core.records import StepMetrics
from dpo_core.train.checkpoint.journal import from_row
from flows.reports.curve_plot import PANELS, draw_curves, draw_panel
from tests.flows.fake import row

STEPS = [from_row(row(step)) for step in range(31)]


@pytest.fixture
def axis() -> Axes:
    return Figure().subplots()


def test_training_and_held_out_share_a_panel(axis: Axes) -> None:
    draw_panel(axis, PANELS[1], STEPS)
    training, held_out, untrained = axis.get_lines()
    assert list(training.get_xdata()) == list(range(1, 31))
    assert list(held_out.get_xdata()) == [0, 10, 20, 30]
    assert list(held_out.get_ydata()) == [step.values["test/accuracy"] for step in STEPS[::10]]
    assert set(untrained.get_ydata()) == {0.5}


def test_an_interval_is_shaded(axis: Axes) -> None:
    values = {"test/accuracy": 0.6, "test/accuracy_low": 0.5, "test/accuracy_high": 0.7}
    draw_panel(axis, PANELS[1], [StepMetrics(step=step, time=0, values=values) for step in (0, 1)])
    [band] = axis.collections
    assert band.get_datalim(axis.transData).extents.tolist() == pytest.approx([0, 0.5, 1, 0.7])


def test_panel_without_values_is_labeled_not_measured(axis: Axes) -> None:
    draw_panel(axis, PANELS[3], [from_row(row(1))])
    assert axis.get_lines() == []
    assert [text.get_text() for text in axis.texts] == ["not measured"]


@pytest.mark.parametrize("steps", [STEPS, STEPS[:1], STEPS[1:2], []])
def test_plot_is_drawn_for_runs_of_any_length(steps: list[StepMetrics], tmp_path: Path) -> None:
    draw_curves(steps, tmp_path / "curves.png")
    image = imread(tmp_path / "curves.png")
    assert image.shape[:2] == (768, 1200)
    assert image.std() > 0.05
