"""The data report: counts, quantiles, histograms and texts."""

import json
from pathlib import Path

import numpy as np

from dpo_core.config.recipe import DataSettings
from dpo_core.data import report
from dpo_core.data.lengths import LengthCounts
from dpo_core.pair import Pair
from dpo_core.records import DataReport
from dpo_core.render.report import with_token_lengths
from dpo_core.render.token_dataset import CompletionTokens, TokenPair, write_split
from tests.conftest import pair_rows
from tests.data.conftest import acquired, write_rows


def completion(length: int) -> CompletionTokens:
    return CompletionTokens(np.zeros(length, np.int32), np.ones(length, np.bool_))


def token_pair(prompt: int, chosen: int, rejected: int) -> TokenPair:
    return TokenPair(np.zeros(prompt, np.int32), Pair(completion(chosen), completion(rejected)))


def test_lengths_are_counted_in_doubling_bins_with_quantiles_by_rank() -> None:
    counts = LengthCounts("tokens")
    counts.add(range(1, 101), [2] * 100, [0] * 50 + [4] * 50)
    fields = counts.report_fields()
    prompt = fields["lengths"]["prompt"]
    assert prompt.mean == 50.5
    assert prompt.quantiles == {"5": 5, "25": 25, "50": 50, "75": 75, "95": 95, "99": 99, "100": 100}
    assert prompt.histogram == (0, 1, 2, 4, 8, 16, 32, 37)
    assert fields["lengths"]["rejected"].histogram == (50, 0, 0, 50)
    assert fields["longer_chosen"] == 0.5


def test_pairs_of_equal_lengths_do_not_count_for_longer_chosen() -> None:
    counts = LengthCounts("tokens")
    counts.add([1, 1, 1], [2, 3, 2], [2, 2, 3])
    assert counts.report_fields()["longer_chosen"] == 0.5
    assert LengthCounts("tokens").report_fields()["longer_chosen"] is None


def test_lengths_in_tokens_come_from_the_rendered_file(tmp_path: Path) -> None:
    path = tmp_path / "train.arrow"
    write_split(path, (token_pair(index, 3, 5) for index in range(1, 2001)))
    token_report = with_token_lengths(path, DataReport(rows_read=2100, kept=2000, dropped={"tie": 100}), 7)
    assert (token_report.unit, token_report.truncated, token_report.dropped) == ("tokens", 7, {"tie": 100})
    assert token_report.lengths["prompt"].quantiles["100"] == 2000
    assert token_report.longer_chosen == 0.0


def test_the_report_is_written_beside_the_data_as_json_and_as_text(tmp_path: Path) -> None:
    rows = [*pair_rows(1300), {"prompt": 3, "chosen": "c", "rejected": "r"}]
    found = acquired(tmp_path, DataSettings(dataset=str(write_rows(tmp_path / "x.jsonl", rows))))
    stored = json.loads((found.path / report.JSON).read_text())
    assert stored["train"] == found.train_report.model_dump(mode="json")
    text = (found.path / report.TEXT).read_text()
    lines = [line.split() for line in text.splitlines()]
    assert ["read", "1171", "130"] in lines
    assert ["dropped:", "malformed:", "neither", "text", "nor", "messages", "1", "0"] in lines
    assert "x.jsonl:1301: user's part is 3" in text
    assert found.train_report.lengths["chosen"].mean == len("Once upon a time. Thank you!")


def test_numbers_on_a_terminal_have_separators() -> None:
    assert report.format_number(12345, plain=False) == "12,345"
    assert report.format_number(12345, plain=True) == "12345"
    assert report.format_number(0.5, plain=True) == "0.500"
    assert report.format_number(None, plain=True) == "-"
    assert [report.bin_name(index) for index in range(4)] == ["0", "1", "2-3", "4-7"]
