"""The data report as one picture: what became of the rows, and how long prompts and replies are."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpo_core.data.lengths import PARTS
from dpo_core.data.report import bin_name
from dpo_core.records import DataReport
from flows.reports.curve_plot import BLUE, GREEN, INK, ORANGE

COLOURS = dict(zip(PARTS, (BLUE, GREEN, ORANGE), strict=True))


def lengths(reports: Mapping[str, DataReport], path: Path) -> None:
    """Draw causes and each split's length histograms into the PNG ``path``; nothing where no length is known."""
    known = {split: report for split, report in reports.items() if report.lengths}
    if not known:
        return
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5 * (len(known) + 1), 3.6), dpi=120, layout="constrained")
        causes, *axes = figure.subplots(1, len(known) + 1)
        draw_causes(causes, known)
        for axis, (split, report) in zip(axes, known.items(), strict=True):
            draw_lengths(axis, split, report)
        figure.savefig(path, metadata={"Software": None})


def draw_causes(axis: Axes, reports: Mapping[str, DataReport]) -> None:
    """What became of the rows of all splits together, as bars with their numbers."""
    told = {"kept": sum(report.kept for report in reports.values())}
    for report in reports.values():
        for cause, count in report.dropped.items():
            told[cause] = told.get(cause, 0) + count
    names = list(told)[::-1]
    bars = axis.barh(names, [told[name] for name in names], color=[BLUE if name == "kept" else INK for name in names])
    axis.bar_label(bars, fmt="{:,.0f}", padding=3)
    axis.margins(x=0.2)
    axis.set_title("rows kept, and dropped by cause", loc="left", fontweight="bold")


def draw_lengths(axis: Axes, split: str, report: DataReport) -> None:
    """Pairs by length, in doubling bins."""
    bins = max(len(found.histogram) for found in report.lengths.values())
    for part, found in report.lengths.items():
        counts = [*found.histogram, *[0] * (bins - len(found.histogram))]
        axis.plot(range(bins), counts, color=COLOURS[part], marker="o", markersize=3, label=part)
    axis.set_xticks(range(bins), [bin_name(index) for index in range(bins)], rotation=45, ha="right")
    axis.set_xlabel(report.unit)
    axis.set_title(f"{split}: pairs by length", loc="left", fontweight="bold")
    axis.legend(frameon=False)
