"""Curves of several runs over each other, as one picture."""

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[int, float]]
Curves = Mapping[str, Mapping[str, Points]]  # run's label, then metric

# In the order of the panels: what is shown, its title, and its value for a model that has learnt nothing.
METRICS: dict[str, tuple[str, float | None]] = {
    "dpo_loss": ("DPO loss, training", log(2)),
    "accuracy": ("accuracy, training", 0.5),
    "margin": ("margin, training", 0.0),
    "test/dpo_loss": ("DPO loss, held out", log(2)),
    "test/accuracy": ("accuracy, held out", 0.5),
    "test/nll_chosen": ("NLL of the chosen side, held out", None),
}
MOST_POINTS = 500
DISTINCT = 10  # colours; more runs than that are told apart by line styles too
STYLES = ("-", "--", ":", "-.")


def draw(curves: Curves, path: Path) -> None:
    """Draw each metric's curves of all runs into the PNG ``path``."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13, 6.6), dpi=110, layout="constrained")
        axes = figure.subplots(2, 3).flat
        for axis, (metric, (title, untrained)) in zip(axes, METRICS.items(), strict=True):
            panel(axis, metric, curves)
            axis.set_title(title, loc="left", fontweight="bold")
            if untrained is not None and axis.lines:
                axis.axhline(untrained, color="#999999", linestyle=":", linewidth=1)
        figure.supxlabel("optimizer steps done", fontsize=9)
        handles = [axis_line for axis in figure.axes[:1] for axis_line in axis.lines[: len(curves)]]
        if len(handles) == len(curves):
            figure.legend(handles, list(curves), loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, metadata={"Software": None})


def panel(axis: Axes, metric: str, curves: Curves) -> None:
    """One metric of all runs; a run that did not measure it has no line."""
    cycle = matplotlib.color_sequences["tab10"]
    for index, told in enumerate(curves.values()):
        points = thinned(told.get(metric, ()))
        x, y = [step for step, _ in points], [value for _, value in points]
        marker = "o" if metric.startswith("test/") or len(points) == 1 else ""
        style = STYLES[index // DISTINCT % len(STYLES)]
        axis.plot(x, y, style, color=cycle[index % DISTINCT], marker=marker, markersize=3, linewidth=1.3)
    axis.grid(axis="y", color="#e6e6e6")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not any(told.get(metric) for told in curves.values()):
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#999999")
        axis.set_xticks([])
        axis.set_yticks([])


def thinned(points: Points) -> Points:
    """So many points as can be seen, the last among them."""
    every = -(-len(points) // MOST_POINTS) or 1
    kept = points[::every]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
