"""Plot of the data report: rows kept and dropped by cause, and lengths of prompts and responses."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpo_core.data.lengths import PARTS
from dpo_core.data.report import bin_name
from dpo_core.records import DataReport
from flows.reports.curve_plot import BLUE, GREEN, INK, ORANGE

COLORS = dict(zip(PARTS, (BLUE, GREEN, ORANGE), strict=True))


def draw_data_report(reports: Mapping[str, DataReport], path: Path) -> None:
    """Draw causes and each split's length histograms into the PNG ``path``.

    ``reports``: by split. Nothing is drawn when no report has lengths.
    """
    measured = {split: report for split, report in reports.items() if report.lengths}
    if not measured:
        return
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5 * (len(measured) + 1), 3.6), dpi=120, layout="constrained")
        causes, *axes = figure.subplots(1, len(measured) + 1)
        draw_causes(causes, measured)
        for axis, (split, report) in zip(axes, measured.items(), strict=True):
            draw_length_histogram(axis, split, report)
        figure.savefig(path, metadata={"Software": None})


def draw_causes(axis: Axes, reports: Mapping[str, DataReport]) -> None:
    """Draw the rows kept and the rows dropped by cause, summed over the splits, as bars with their counts."""
    totals = {"kept": sum(report.kept for report in reports.values())}
    for report in reports.values():
        for cause, count in report.dropped.items():
            totals[cause] = totals.get(cause, 0) + count
    names = list(totals)[::-1]
    bars = axis.barh(names, [totals[name] for name in names], color=[BLUE if name == "kept" else INK for name in names])
    axis.bar_label(bars, fmt="{:,.0f}", padding=3)
    axis.margins(x=0.2)
    axis.set_title("rows kept, and rows dropped by cause", loc="left", fontweight="bold")


def draw_length_histogram(axis: Axes, split: str, report: DataReport) -> None:
    """Draw the number of pairs per bin of length; each bin is twice as wide as the one before."""
    bins = max(len(part_lengths.histogram) for part_lengths in report.lengths.values())
    for part, part_lengths in report.lengths.items():
        counts = [*part_lengths.histogram, *[0] * (bins - len(part_lengths.histogram))]
        axis.plot(range(bins), counts, color=COLORS[part], marker="o", markersize=3, label=part)
    axis.set_xticks(range(bins), [bin_name(index) for index in range(bins)], rotation=45, ha="right")
    axis.set_xlabel(report.unit)
    axis.set_title(f"{split}: pairs by length", loc="left", fontweight="bold")
    axis.legend(frameon=False)
