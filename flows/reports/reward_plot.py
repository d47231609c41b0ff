"""Plot of the implicit rewards of held-out pairs, chosen and rejected, and of their margins."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.reports.curve_plot import BLUE, GREEN, INK, ORANGE

BINS = 40


def draw_rewards(pairs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw histograms of the implicit rewards βΔ (Δ: policy less reference logps) and margins into the PNG ``path``.

    ``pairs``: a row per pair with the rewards ``chosen`` and ``rejected``. Nothing is drawn when there are no pairs.
    """
    if not pairs:
        return
    chosen, rejected = (np.array([pair[side] for pair in pairs]) for side in ("chosen", "rejected"))
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
        sides, margin = figure.subplots(1, 2)
        draw_histograms(sides, {"chosen": (chosen, GREEN), "rejected": (rejected, ORANGE)})
        sides.set_title(f"implicit rewards of {len(pairs):,} held-out pairs", loc="left", fontweight="bold")
        sides.legend(frameon=False)
        draw_histograms(margin, {"margin": (chosen - rejected, BLUE)})
        won = np.mean(np.where(chosen == rejected, 0.5, chosen > rejected))
        margin.set_title(f"margins (chosen less rejected): {won:.1%} above 0", loc="left", fontweight="bold")
        for axis in (sides, margin):
            axis.axvline(0, color=INK, linestyle=":", linewidth=1)
            axis.set_ylabel("pairs")
        figure.savefig(path, metadata={"Software": None})


def draw_histograms(axis: Axes, series: dict[str, tuple[np.ndarray[Any, Any], str]]) -> None:
    """Draw a histogram per name, from its values (float, ``[num_pairs]``) and color, all on the same bins."""
    edges = np.histogram_bin_edges(np.concatenate([values for values, _ in series.values()]), BINS)
    for name, (values, color) in series.items():
        axis.hist(values, list(edges), color=color, alpha=0.6, label=name)
