"""Data report: rows kept and dropped by cause, and the lengths of the pairs; as tables, JSON and text."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from dpo_core.data.lengths import CUTS, LENGTH_CAUSES, PARTS, PERCENTS
from dpo_core.records import DataReport, Lengths

JSON, TEXT = "report.json", "report.txt"
WIDTH, BAR_WIDTH = 110, 24
OVER_LENGTH_WARNING_SHARE = 0.05

Reports = Mapping[str, DataReport]


def write_report(directory: Path, title: str, reports: Reports) -> None:
    """Write ``report.json`` and ``report.txt`` into a directory."""
    dumped = {split: report.model_dump(mode="json") for split, report in reports.items()}
    (directory / JSON).write_text(json.dumps({"dataset": title, **dumped}, indent=1) + "\n")
    (directory / TEXT).write_text(report_text(title, reports))


def report_text(title: str, reports: Reports) -> str:
    """The report as plain text; numbers have no thousands separators."""
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None).print(
        report_tables(title, reports, plain=True), soft_wrap=True
    )
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def report_tables(title: str, reports: Reports, plain: bool = False) -> Group:
    """The whole report: row counts, the first row of each cause, warnings, lengths and their histograms."""
    notes = [*example_lines(reports), *(Text(line, style="yellow") for line in over_length_warnings(reports))]
    parts: list[Table | Text] = [Text(f"Data: {title}", style="bold"), rows_table(reports, plain), *notes]
    measured = {split: report for split, report in reports.items() if report.lengths}
    return (
        Group(*parts, lengths_table(measured, plain), histogram_table(measured, plain)) if measured else Group(*parts)
    )


def empty_table(title: str | None, plain: bool) -> Table:
    """An empty table in this report's style."""
    style = None if plain else box.SIMPLE_HEAD
    return Table(title=title, title_justify="left", title_style="bold", box=style, pad_edge=False)


def format_number(value: float | None, plain: bool) -> str:
    """A count, a mean (one decimal) or a share (three decimals) as text; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if value > 1 else f"{value:.3f}"
    return str(value) if plain else f"{value:,}"


def rows_table(reports: Reports, plain: bool) -> Table:
    """Rows read, dropped by cause and kept; truncated pairs by the part cut; how often the longer side is chosen."""
    table = empty_table(None, plain)
    table.add_column("rows")
    for split in reports:
        table.add_column(split, justify="right")
    causes = sorted({cause for report in reports.values() for cause in report.dropped})
    cuts = [cut for cut in CUTS if any(report.cuts.get(cut) for report in reports.values())]
    lines: list[tuple[str, Sequence[float | None]]] = [
        ("read", [report.rows_read for report in reports.values()]),
        *((f"dropped: {cause}", [report.dropped.get(cause, 0) for report in reports.values()]) for cause in causes),
        ("kept", [report.kept for report in reports.values()]),
        ("truncated", [report.truncated for report in reports.values()]),
        *((f"truncated: {cut}", [report.cuts.get(cut, 0) for report in reports.values()]) for cut in cuts),
        ("truncated, share of kept", [report.truncated / max(report.kept, 1) for report in reports.values()]),
        ("longer side is chosen, share", [report.longer_chosen for report in reports.values()]),
    ]
    for name, values in lines:
        table.add_row(name, *(format_number(value, plain) for value in values))
    return table


def example_lines(reports: Reports) -> Iterator[Text]:
    """A line for each cause with the first row that had it."""
    for split, report in reports.items():
        for cause, example in report.examples.items():
            yield Text(f"first {cause} ({split}): {example}", style="dim", overflow="fold")


def over_length_warnings(reports: Reports) -> Iterator[str]:
    """A warning for every split with more than OVER_LENGTH_WARNING_SHARE of its pairs cut or dropped for length."""
    for split, report in reports.items():
        lost = sum(report.dropped.get(cause, 0) for cause in LENGTH_CAUSES)
        pairs, touched = report.kept + lost, report.truncated + lost
        if report.uncut and touched > OVER_LENGTH_WARNING_SHARE * pairs:
            yield (
                f"Warning: {touched} of {pairs} {split} pairs are longer than max_length ({report.truncated} cut,"
                f" {lost} dropped); max_length={report.uncut.quantiles['95']} would keep 95 % of them whole."
            )


def lengths_table(reports: Reports, plain: bool) -> Table:
    """Mean and quantiles of the lengths of prompts, chosen and rejected responses."""
    unit = next(iter(reports.values())).unit
    table = empty_table(f"Lengths in {unit}", plain)
    table.add_column("split, part")
    for name in ("mean", *(f"{percent}%" for percent in PERCENTS)):
        table.add_column(name, justify="right")
    for split, report in reports.items():
        for part, part_lengths in report.lengths.items():
            table.add_row(
                f"{split}, {part}", *(format_number(value, plain) for value in mean_and_quantiles(part_lengths))
            )
        if report.uncut and (report.truncated or any(cause in report.dropped for cause in LENGTH_CAUSES)):
            table.add_row(
                f"{split}, whole pair uncut",
                *(format_number(value, plain) for value in mean_and_quantiles(report.uncut)),
            )
    return table


def mean_and_quantiles(lengths: Lengths) -> list[float]:
    """The mean and the quantiles (PERCENTS) of lengths."""
    return [lengths.mean, *(lengths.quantiles[str(percent)] for percent in PERCENTS)]


def histogram_table(reports: Reports, plain: bool) -> Table:
    """Number of pairs by length in doubling bins, for the first split (train)."""
    split, report = next(iter(reports.items()))
    table = empty_table(f"Histogram of {split}, pairs by {report.unit}", plain)
    table.add_column("length", justify="right")
    for part in PARTS:
        table.add_column(part, justify="right")
        table.add_column("")
    counts = {part: report.lengths[part].histogram for part in PARTS}
    highest = max(max(bins) for bins in counts.values())
    for index in range(max(len(bins) for bins in counts.values())):
        row = [bins[index] if index < len(bins) else 0 for bins in counts.values()]
        cells = [
            cell for count in row for cell in (format_number(count, plain), "#" * round(BAR_WIDTH * count / highest))
        ]
        table.add_row(bin_name(index), *cells)
    return table


def bin_name(index: int) -> str:
    """The range of lengths in a doubling bin, as ``4-7``."""
    first, last = (1 << index) >> 1, (1 << index) - 1
    return str(last) if first >= last else f"{first}-{last}"
