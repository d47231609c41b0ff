"""Plot of the data report."""

from pathlib import Path

import matplotlib.image

from dpo_core.data.lengths import LengthCounts
from dpo_core.records import DataReport
from flows.reports.data_plot import draw_data_report


def test_causes_and_lengths_of_both_splits_are_drawn(tmp_path: Path) -> None:
    counts = LengthCounts("tokens")
    counts.add([10, 20, 300], [5, 6, 7], [1, 2, 3])
    report = DataReport(rows_read=5, kept=3, dropped={"tie": 2}, **counts.report_fields())
    draw_data_report({"train": report}, tmp_path / "one.png")
    draw_data_report({"train": report, "test": report}, tmp_path / "two.png")
    single, double = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert double.shape[1] > single.shape[1]
    assert single.std() > 0.05


def test_a_report_without_lengths_draws_nothing(tmp_path: Path) -> None:
    draw_data_report({"train": DataReport(rows_read=1, kept=1)}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
