"""The picture of the data report."""

from pathlib import Path

import matplotlib.image

from dpo_core.data.lengths import LengthCounts
from dpo_core.records import DataReport
from flows.reports.data_plot import lengths


def test_causes_and_lengths_of_both_splits_are_drawn(tmp_path: Path) -> None:
    counts = LengthCounts("tokens")
    counts.add([10, 20, 300], [5, 6, 7], [1, 2, 3])
    report = DataReport(rows_read=5, kept=3, dropped={"tie": 2}, **counts.report_fields())
    lengths({"train": report}, tmp_path / "one.png")
    lengths({"train": report, "test": report}, tmp_path / "two.png")
    one, two = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two.shape[1] > one.shape[1]
    assert one.std() > 0.05


def test_a_report_without_lengths_draws_nothing(tmp_path: Path) -> None:
    lengths({"train": DataReport(rows_read=1, kept=1)}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
