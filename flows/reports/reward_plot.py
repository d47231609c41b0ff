"""How far apart a model holds the two sides of held-out pairs, as a picture of every pair."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.reports.curve_plot import BLUE, GREEN, INK, ORANGE

BINS = 40


def rewards(pairs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw histograms of the implicit rewards βΔ of both sides, and of their difference, into the PNG ``path``.

    pairs: ``chosen`` and ``rejected``, the rewards. Nothing is drawn of no pairs.
    """
    if not pairs:
        return
    chosen, rejected = (np.array([pair[side] for pair in pairs]) for side in ("chosen", "rejected"))
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
        sides, margin = figure.subplots(1, 2)
        histogram(sides, {"chosen": (chosen, GREEN), "rejected": (rejected, ORANGE)})
        sides.set_title(f"implicit rewards of {len(pairs):,} held-out pairs", loc="left", fontweight="bold")
        sides.legend(frameon=False)
        histogram(margin, {"margin": (chosen - rejected, BLUE)})
        won = np.mean(np.where(chosen == rejected, 0.5, chosen > rejected))
        margin.set_title(f"margins: {won:.1%} right of 0", loc="left", fontweight="bold")
        for axis in (sides, margin):
            axis.axvline(0, color=INK, linestyle=":", linewidth=1)
            axis.set_ylabel("pairs")
        figure.savefig(path, metadata={"Software": None})


def histogram(axis: Axes, told: dict[str, tuple[np.ndarray[Any, Any], str]]) -> None:
    """Values on shared bins, one colour each."""
    edges = np.histogram_bin_edges(np.concatenate([values for values, _ in told.values()]), BINS)
    for name, (values, colour) in told.items():
        axis.hist(values, list(edges), color=colour, alpha=0.6, label=name)
