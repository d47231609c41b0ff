"""The first stage: what is kept, how it is split, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_core.config.recipe import DataSettings
from dpo_core.data import acquire
from dpo_core.data.preference import read_pairs
from dpo_core.errors import DataError
from dpo_core.records import PairSet
from tests.conftest import pair_rows, shared
from tests.data.conftest import acquired

Writer = Callable[..., Path]


def prompts(pairs: PairSet, split: str) -> list[str]:
    return [pair.prompt_key for pair in read_pairs(pairs.path / f"{split}.arrow")]


def test_a_file_is_split_by_prompt_so_that_none_is_in_both(tmp_path: Path, write_jsonl: Writer) -> None:
    rows = [row | {"rejected": f"{row['rejected']} {twin}"} for row in pair_rows(60) for twin in range(2)]
    pairs = acquired(tmp_path, DataSettings(dataset=str(write_jsonl(rows))))
    train, test = prompts(pairs, "train"), prompts(pairs, "test")
    assert (pairs.train_pairs, pairs.test_pairs) == (len(train), len(test)) == (108, 12)
    assert not set(train) & set(test)


def test_the_split_is_the_same_whatever_the_order_of_rows(tmp_path: Path, write_jsonl: Writer) -> None:
    forward = acquired(tmp_path / "a", DataSettings(dataset=str(write_jsonl(pair_rows(50), "a.jsonl"))))
    reversed_order = acquired(tmp_path / "b", DataSettings(dataset=str(write_jsonl(pair_rows(50)[::-1], "b.jsonl"))))
    assert set(prompts(forward, "test")) == set(prompts(reversed_order, "test"))


def test_a_given_test_file_takes_its_prompts_out_of_training(tmp_path: Path, write_jsonl: Writer) -> None:
    train, test = write_jsonl(pair_rows(20)), write_jsonl(pair_rows(5), "test.jsonl")
    pairs = acquired(tmp_path, DataSettings(dataset=str(train), test_path=test))
    assert (pairs.train_pairs, pairs.test_pairs) == (15, 5)
    assert pairs.train_report.dropped == {"prompt is in the test split": 5}


def test_duplicates_are_dropped_and_counted(tmp_path: Path, write_jsonl: Writer) -> None:
    pairs = acquired(tmp_path, DataSettings(dataset=str(write_jsonl(pair_rows(20) * 2))))
    assert pairs.train_report.dropped == {"duplicate": 20}
    assert pairs.train_pairs + pairs.test_pairs == 20


def test_too_many_malformed_rows_are_an_error_that_shows_them(tmp_path: Path, write_jsonl: Writer) -> None:
    rows = [*pair_rows(10), *({"prompt": index, "chosen": "c", "rejected": "r"} for index in range(5))]
    path = write_jsonl(rows)
    with pytest.raises(DataError, match=r"5 of 15 dataset rows are malformed: 5 .* \(as pairs.jsonl:11: .*At most 20%"):
        acquired(tmp_path, DataSettings(dataset=str(path)))
    assert acquired(tmp_path, DataSettings(dataset=str(path), max_dropped_fraction=0.5)).train_report.dropped == {
        "malformed: neither text nor messages": 5
    }


def test_no_pair_left_is_an_error_that_says_where_they_went(tmp_path: Path, write_jsonl: Writer) -> None:
    path = write_jsonl([{"prompt": "p", "chosen": "same", "rejected": "same"}])
    with pytest.raises(DataError, match=r"No train pair is left of 1 rows \(1 equal sides\)"):
        acquired(tmp_path, DataSettings(dataset=str(path)))


def test_an_unknown_dataset_is_named() -> None:
    with pytest.raises(DataError, match=r"There is no dataset nothere\.jsonl"):
        acquire.pin_source(DataSettings(dataset="nothere.jsonl"))


def test_the_hh_file_as_a_dataset(tmp_path: Path) -> None:
    pairs = acquired(
        tmp_path, DataSettings(dataset=str(shared("data", "hh-rlhf", "harmless-base-test-first1200.jsonl.gz")))
    )
    assert pairs.train_report.dropped == {"empty reply": 4}
    assert pairs.train_pairs + pairs.test_pairs == 1196
