"""Plot of training curves of several runs, a panel per metric."""

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[int, float]]
Curves = Mapping[str, Mapping[str, Points]]  # by run label, then by metric: (step, value)

# A panel per metric: its title and the value of an untrained policy, None where that depends on the model.
METRICS: dict[str, tuple[str, float | None]] = {
    "dpo_loss": ("DPO loss, training", log(2)),
    "accuracy": ("accuracy, training", 0.5),
    "margin": ("margin, training", 0.0),
    "test/dpo_loss": ("DPO loss, held out", log(2)),
    "test/accuracy": ("accuracy, held out", 0.5),
    "test/nll_chosen": ("NLL of the chosen response, held out", None),
}
MAX_POINTS = 500
NUM_COLORS = 10  # with more runs, line styles distinguish them too
STYLES = ("-", "--", ":", "-.")


def draw_comparison(curves: Curves, path: Path) -> None:
    """Draw each metric of all runs into the PNG ``path``; dotted lines are the values of an untrained policy."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13, 6.6), dpi=110, layout="constrained")
        axes = figure.subplots(2, 3).flat
        for axis, (metric, (title, untrained)) in zip(axes, METRICS.items(), strict=True):
            draw_panel(axis, metric, curves)
            axis.set_title(title, loc="left", fontweight="bold")
            if untrained is not None and axis.lines:
                axis.axhline(untrained, color="#999999", linestyle=":", linewidth=1)
        figure.supxlabel("optimizer steps", fontsize=9)
        handles = [axis_line for axis in figure.axes[:1] for axis_line in axis.lines[: len(curves)]]
        if len(handles) == len(curves):
            figure.legend(handles, list(curves), loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, metadata={"Software": None})


def draw_panel(axis: Axes, metric: str, curves: Curves) -> None:
    """Draw one metric of all runs; a run that did not measure it has no line."""
    cycle = matplotlib.color_sequences["tab10"]
    for index, metrics in enumerate(curves.values()):
        points = thin_points(metrics.get(metric, ()))
        x, y = [step for step, _ in points], [value for _, value in points]
        marker = "o" if metric.startswith("test/") or len(points) == 1 else ""
        style = STYLES[index // NUM_COLORS % len(STYLES)]
        axis.plot(x, y, style, color=cycle[index % NUM_COLORS], marker=marker, markersize=3, linewidth=1.3)
    axis.grid(axis="y", color="#e6e6e6")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not any(metrics.get(metric) for metrics in curves.values()):
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#999999")
        axis.set_xticks([])
        axis.set_yticks([])


def thin_points(points: Points) -> Points:
    """At most MAX_POINTS evenly spaced points, and the last point."""
    stride = -(-len(points) // MAX_POINTS) or 1
    kept = points[::stride]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
