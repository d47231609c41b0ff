"""Plot of the rewards of held-out pairs."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

from flows.reports.curve_plot import GREEN, ORANGE
from flows.reports.reward_plot import draw_histograms, draw_rewards


def test_chosen_and_rejected_share_bins_and_every_pair_is_counted() -> None:
    axis = Figure().subplots()
    chosen, rejected = np.linspace(0, 3, 31), np.linspace(-2, 1, 31)
    draw_histograms(axis, {"chosen": (chosen, GREEN), "rejected": (rejected, ORANGE)})
    green, orange = (sum(bar.get_height() for bar in bars) for bars in axis.containers)
    assert (green, orange) == (31, 31)
    assert [bar.get_x() for bar in axis.containers[0]] == [bar.get_x() for bar in axis.containers[1]]


def test_plot_is_drawn_only_with_pairs(tmp_path: Path) -> None:
    draw_rewards([{"chosen": 0.5, "rejected": -0.5}, {"chosen": 0.0, "rejected": 0.0}], tmp_path / "some.png")
    assert imread(tmp_path / "some.png").std() > 0
    draw_rewards([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
