"""The curves of a run as one picture."""

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
    """One line: the metric's name, what the legend calls it, its colour; held-out ones are drawn with their points."""

    metric: str
    label: str
    colour: str

    @property
    def held_out(self) -> bool:
        """Whether it is measured now and then, on the test split."""
        return self.metric.startswith("test/")


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share an axis, and the value (if any) of a model that has learnt nothing."""

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


def curves(steps: Sequence[StepMetrics], path: Path) -> None:
    """Draw loss, accuracy, rewards and held-out NLL over the steps, 95 % intervals shaded, into the PNG ``path``."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 6.4), dpi=120, layout="constrained")
        axes = figure.subplots(2, 2, sharex=True).flat
        for axis, panel in zip(axes, PANELS, strict=True):
            draw(axis, panel, steps)
        for axis in figure.axes[2:]:
            axis.set_xlabel("optimizer steps done")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(path, metadata={"Software": None})


def draw(axis: Axes, panel: Panel, steps: Sequence[StepMetrics]) -> None:
    """One panel; a metric that was never measured is left out."""
    axis.set_title(panel.title, loc="left", fontweight="bold")
    axis.grid(axis="y", color="#e6e6e6")
    axis.set_axisbelow(True)
    drawn = [curve for curve in panel.curves if line(axis, curve, steps)]
    if not drawn:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#999999")
        axis.set_yticks([])
        return
    if panel.untrained is not None:
        axis.axhline(panel.untrained, color="#999999", linestyle=":", linewidth=1, label="untrained")
    # Beside the title, where no curve can run into it.
    axis.legend(
        frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 0.99), handlelength=1.4, columnspacing=1.1
    )


def line(axis: Axes, curve: Curve, steps: Sequence[StepMetrics]) -> bool:
    """Draw one curve, training's thin and held-out with its points; false when there is nothing to draw."""
    known = [(step.step, step.values[curve.metric]) for step in steps if curve.metric in step.values]
    if known:
        x, y = zip(*known, strict=True)
        points = "o" if curve.held_out or len(known) == 1 else ""
        width = 1.8 if curve.held_out else 1.2
        axis.plot(x, y, color=curve.colour, label=curve.label, linewidth=width, marker=points, markersize=3.5)
        shade(axis, curve, steps)
    return bool(known)


def shade(axis: Axes, curve: Curve, steps: Sequence[StepMetrics]) -> None:
    """The 95 % interval of a metric that comes with one (``<metric>_low``, ``<metric>_high``)."""
    low, high = f"{curve.metric}_low", f"{curve.metric}_high"
    known = [
        (step.step, step.values[low], step.values[high]) for step in steps if low in step.values and high in step.values
    ]
    if known:
        x, bottom, top = zip(*known, strict=True)
        axis.fill_between(x, bottom, top, color=curve.colour, alpha=0.15, linewidth=0)
