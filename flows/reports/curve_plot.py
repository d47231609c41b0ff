"""Plot of a run's training curves: loss, accuracy, rewards and held-out NLL."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpo_core.records import StepMetrics

INK, BLUE, ORANGE, GREEN = "#333333", "#2f6fb7", "#d9772b", "#3b8f54"


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve: its metric, its name in the legend, and its color."""

    metric: str
    label: str
    color: str

    @property
    def held_out(self) -> bool:
        """Whether the metric is of the test split, so it is measured at some steps only."""
        return self.metric.startswith("test/")


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share an axis, and the value of an untrained policy if it is the same for every model."""

    title: str
    curves: tuple[Curve, ...]
    untrained: float | None = None


PANELS = (
    Panel("DPO loss", (Curve("dpo_loss", "training", BLUE), Curve("test/dpo_loss", "held out", ORANGE)), log(2)),
    Panel("accuracy", (Curve("accuracy", "training", BLUE), Curve("test/accuracy", "held out", ORANGE)), 0.5),
    Panel(
        "rewards",
        (
            Curve("chosen_reward", "chosen", GREEN),
            Curve("rejected_reward", "rejected", ORANGE),
            Curve("margin", "margin", BLUE),
        ),
        0.0,
    ),
    Panel(
        "held-out NLL per token",
        (
            Curve("test/nll_chosen", "chosen", GREEN),
            Curve("test/nll_rejected", "rejected", ORANGE),
            Curve("test/nll", "both", INK),
        ),
    ),
)


def draw_curves(steps: Sequence[StepMetrics], path: Path) -> None:
    """Draw loss, accuracy, rewards and held-out NLL over the steps, 95 % intervals shaded, into the PNG ``path``."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 6.4), dpi=120, layout="constrained")
        axes = figure.subplots(2, 2, sharex=True).flat
        for axis, panel in zip(axes, PANELS, strict=True):
            draw_panel(axis, panel, steps)
        for axis in figure.axes[2:]:
            axis.set_xlabel("optimizer steps")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(path, metadata={"Software": None})


def draw_panel(axis: Axes, panel: Panel, steps: Sequence[StepMetrics]) -> None:
    """Draw one panel; a metric that was never measured is left out."""
    axis.set_title(panel.title, loc="left", fontweight="bold")
    axis.grid(axis="y", color="#e6e6e6")
    axis.set_axisbelow(True)
    drawn = [curve for curve in panel.curves if draw_curve(axis, curve, steps)]
    if not drawn:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#999999")
        axis.set_yticks([])
        return
    if panel.untrained is not None:
        axis.axhline(panel.untrained, color="#999999", linestyle=":", linewidth=1, label="untrained")
    # Beside the title, where it cannot cover a curve.
    axis.legend(
        frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 0.99), handlelength=1.4, columnspacing=1.1
    )


def draw_curve(axis: Axes, curve: Curve, steps: Sequence[StepMetrics]) -> bool:
    """Draw one curve; returns whether its metric was measured. Held-out curves are thicker, with a dot per value."""
    values = [(step.step, step.values[curve.metric]) for step in steps if curve.metric in step.values]
    if values:
        x, y = zip(*values, strict=True)
        points = "o" if curve.held_out or len(values) == 1 else ""
        width = 1.8 if curve.held_out else 1.2
        axis.plot(x, y, color=curve.color, label=curve.label, linewidth=width, marker=points, markersize=3.5)
        shade_interval(axis, curve, steps)
    return bool(values)


def shade_interval(axis: Axes, curve: Curve, steps: Sequence[StepMetrics]) -> None:
    """Shade the 95 % interval of a metric that has one (``<metric>_low``, ``<metric>_high``)."""
    low, high = f"{curve.metric}_low", f"{curve.metric}_high"
    bounds = [
        (step.step, step.values[low], step.values[high]) for step in steps if low in step.values and high in step.values
    ]
    if bounds:
        x, bottom, top = zip(*bounds, strict=True)
        axis.fill_between(x, bottom, top, color=curve.color, alpha=0.15, linewidth=0)
