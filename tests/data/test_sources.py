"""Files, directories, saved datasets and hub ids; column mappings; what is refused, with which words."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from dpo_core.cache.store import Store
from dpo_core.config.recipe import DataSettings
from dpo_core.data import acquire
from dpo_core.data.datasets.registry import convert_by_columns
from dpo_core.data.readers import jsonl
from dpo_core.data.row_outcome import Dropped
from dpo_core.errors import DataError, RecipeError
from dpo_core.records import PairSet
from tests.conftest import pair_rows, shared
from tests.data.conftest import acquired, pairs_of, write_rows

RENAMED = [{"question": f"q {i}", "context": f"c {i}", "good": f"g {i}", "bad": f"b {i}"} for i in range(20)]


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.json", "pairs.jsonl", "pairs.jsonl.gz", "pairs.ndjson"])
def test_a_file_of_each_kind_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    found = acquired(tmp_path, DataSettings(dataset=str(write_rows(tmp_path / name, pair_rows(40)))))
    same = acquired(tmp_path, DataSettings(dataset=str(write_rows(tmp_path / "x.jsonl", pair_rows(40)))), "other")
    assert (found.train_pairs, found.test_pairs) == (36, 4)
    assert found.fingerprint == same.fingerprint


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.jsonl"])
def test_pairs_keep_the_source_of_their_rows(tmp_path: Path, name: str) -> None:
    """Both those that are trained on and those that are held out by prompt."""
    names = ["wiki", "chat"]
    rows = [row | {"source": names[number % 2]} for number, row in enumerate(pair_rows(40))]
    found = acquired(tmp_path, DataSettings(dataset=str(write_rows(tmp_path / name, rows))))
    for pair in pairs_of(found) + pairs_of(found, "test"):
        assert pair.source == names[int(pair.prompt[0]["content"].split()[-1].rstrip(".")) % 2]


def test_an_arrow_file(tmp_path: Path) -> None:
    Dataset.from_list(pair_rows(20)).save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert acquired(tmp_path, DataSettings(dataset=str(arrow))).train_pairs == 18


def test_a_dataset_saved_to_disk_with_its_own_test_split(tmp_path: Path) -> None:
    splits = {"train": Dataset.from_list(pair_rows(20)), "test": Dataset.from_list(pair_rows(3))}
    DatasetDict(splits).save_to_disk(str(tmp_path / "both"))
    splits["train"].save_to_disk(str(tmp_path / "one"))
    before = sorted((tmp_path / "one").rglob("*"))
    both = acquired(tmp_path, DataSettings(dataset=str(tmp_path / "both")), "both")
    single = acquired(tmp_path, DataSettings(dataset=str(tmp_path / "one")), "one")
    assert (both.train_pairs, both.test_pairs) == (17, 3)
    assert (single.train_pairs, single.test_pairs) == (18, 2)
    assert sorted((tmp_path / "one").rglob("*")) == before  # nothing is written beside the user's data


def test_a_directory_of_parquet_by_its_split_names(tmp_path: Path) -> None:
    write_rows(tmp_path / "dir" / "train.parquet", pair_rows(20))
    write_rows(tmp_path / "dir" / "validation.parquet", pair_rows(4))
    directory = str(tmp_path / "dir")
    assert acquired(tmp_path, DataSettings(dataset=directory), "a").test_pairs == 4
    write_rows(tmp_path / "dir" / "validation.parquet", [row | {"prompt": f"{row['prompt']}?"} for row in pair_rows(4)])
    swapped = DataSettings(dataset=directory, train_split="validation", test_split="train")
    found = acquired(tmp_path, swapped, "b")
    assert (found.train_pairs, found.test_pairs) == (4, 20)


def test_held_out_pairs_from_a_file_of_another_kind(tmp_path: Path) -> None:
    write_rows(tmp_path / "dir" / "train.parquet", pair_rows(20))
    test = write_rows(tmp_path / "held-out.parquet", pair_rows(3))
    found = acquired(tmp_path, DataSettings(dataset=str(tmp_path / "dir"), test_path=test))
    assert (found.train_pairs, found.test_pairs) == (17, 3)
    with pytest.raises(DataError, match=r"There is no .*absent\.jsonl"):
        acquire.pin_source(DataSettings(dataset=str(tmp_path / "dir"), test_path=tmp_path / "absent.jsonl"))


def test_a_directory_without_the_split_says_which_there_are(tmp_path: Path) -> None:
    write_rows(tmp_path / "dir" / "validation.parquet", pair_rows(4))
    with pytest.raises(DataError, match=r"has no split train.*it has validation\..*train_split"):
        acquired(tmp_path, DataSettings(dataset=str(tmp_path / "dir")))
    write_rows(tmp_path / "dir" / "train.parquet", pair_rows(20))
    with pytest.raises(DataError, match="has no split train and tset; it has train, validation"):
        acquired(tmp_path, DataSettings(dataset=str(tmp_path / "dir"), test_split="tset"))
    with pytest.raises(DataError, match="has no split train and test; it has train, validation"):
        acquired(tmp_path, DataSettings(dataset="hhh", data_path=tmp_path / "dir"))
    assert list((tmp_path / "store" / "acquire").iterdir()) == []  # nothing is half-written


def test_a_part_of_a_directory_by_its_configuration(tmp_path: Path) -> None:
    write_rows(tmp_path / "dir" / "good" / "train.jsonl", pair_rows(20))
    write_rows(tmp_path / "dir" / "other" / "train.jsonl", [{"x": 1}])
    card = "---\nconfigs:\n- config_name: tuned\n  data_files: good/train.jsonl\n---\n"
    directory = str(tmp_path / "dir")
    assert acquired(tmp_path, DataSettings(dataset=directory, dataset_config="good"), "a").train_pairs == 18
    (tmp_path / "dir" / "README.md").write_text(card)
    assert acquired(tmp_path, DataSettings(dataset=directory, dataset_config="tuned"), "b").train_pairs == 18
    with pytest.raises(DataError, match=r"does not load: .*dataset_config"):
        acquired(tmp_path, DataSettings(dataset=directory, dataset_config="absent"), "c")


def test_an_empty_directory_and_a_broken_file_do_not_load(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 is how it begins, and that is all")
    for name in ("empty", "broken.parquet"):
        with pytest.raises(DataError, match=rf"{name} does not load: "):
            acquired(tmp_path, DataSettings(dataset=str(tmp_path / name)))
    (tmp_path / "notes.docx").write_text("?")
    with pytest.raises(DataError, match="not a dataset file of a known kind"):
        acquire.pin_source(DataSettings(dataset=str(tmp_path / "notes.docx")))


def test_a_cut_off_cache_of_datasets_is_built_again(tmp_path: Path, own_cache: Path) -> None:
    path = write_rows(tmp_path / "pairs.parquet", pair_rows(40))
    whole = acquired(tmp_path, DataSettings(dataset=str(path)), "before")
    (arrow,) = own_cache.rglob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert acquired(tmp_path, DataSettings(dataset=str(path)), "after").fingerprint == whole.fingerprint


def test_a_cut_off_output_is_not_used(tmp_path: Path) -> None:
    found = acquired(tmp_path, DataSettings(dataset=str(write_rows(tmp_path / "x.jsonl", pair_rows(20)))))
    train = found.path / "train.arrow"
    train.write_bytes(train.read_bytes()[:-50])
    assert Store(tmp_path / "store").find("acquire", "key", PairSet) is None
    assert not found.path.exists()


COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """No hub to reach, and a cache of it to fill: gives the snapshot's directory of a repository."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def snapshot(name: str) -> Path:
        root = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT)
        return root / "snapshots" / COMMIT

    return snapshot


def test_a_hub_id_from_the_hubs_cache(tmp_path: Path, offline: Callable[[str], Path]) -> None:
    write_rows(offline("me/prefs") / "train.jsonl.gz", RENAMED)
    columns = {"prompt_column": ("question",), "chosen_column": "good", "rejected_column": "bad"}
    found = acquired(tmp_path, DataSettings(dataset="hub:me/prefs", **columns))
    assert found.source == f"me/prefs@{COMMIT}"
    assert (found.train_pairs, found.test_pairs) == (18, 2)
    with pytest.raises(DataError, match=r"dataset Anthropic/hh-rlhf is not in the cache.*data_path"):
        acquire.pin_source(DataSettings(dataset="hhh"))


def test_a_known_repository_by_its_id_is_read_by_its_own_rules(tmp_path: Path, offline: Callable[[str], Path]) -> None:
    name = "HuggingFaceH4/ultrafeedback_binarized"
    score = {"score_chosen": 2.0, "score_rejected": 2.0}
    rows = [row | (score if index < 5 else score | {"score_chosen": 9.0}) for index, row in enumerate(pair_rows(30))]
    turns = [
        row
        | {
            side: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            for side in ("chosen", "rejected")
        }
        for row in rows
    ]
    write_rows(offline(name) / "train.parquet", turns)
    found = acquired(tmp_path, DataSettings(dataset=f"hub:{name}"))
    assert found.source == f"{name}@{COMMIT}"
    assert found.train_report.dropped.get("tie", 0) + found.test_report.dropped.get("tie", 0) == 5
    with pytest.raises(RecipeError, match="prompt_column has no effect"):
        acquire.pin_source(DataSettings(dataset=f"hub:{name}", prompt_column=("x",)))


def test_a_revision_that_the_cache_does_not_hold(offline: Callable[[str], Path]) -> None:
    offline("me/prefs").mkdir(parents=True)
    assert acquire.pin_source(DataSettings(dataset="hub:me/prefs", dataset_revision=COMMIT)) == f"me/prefs@{COMMIT}"
    with pytest.raises(DataError, match="The hub cannot be reached"):
        acquire.pin_source(DataSettings(dataset="hub:me/prefs", dataset_revision="v2"))


def test_a_mapping_joins_prompt_columns_by_a_blank_line(tmp_path: Path) -> None:
    rows = [*RENAMED, RENAMED[0] | {"question": "alone", "context": ""}]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    data = DataSettings(
        dataset=str(path), prompt_column=("question", "context"), chosen_column="good", rejected_column="bad"
    )
    found = acquired(tmp_path, data)
    prompts = {pair.prompt[0]["content"] for split in ("train", "test") for pair in pairs_of(found, split)}
    assert prompts == {"alone", *(f"q {i}\n\nc {i}" for i in range(20))}


def test_a_mapping_without_a_prompt_reads_renamed_transcripts(tmp_path: Path) -> None:
    rows = [{"yes": f"\n\nHuman: {i}\n\nAssistant: y", "no": f"\n\nHuman: {i}\n\nAssistant: n"} for i in range(20)]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    assert acquired(tmp_path, DataSettings(dataset=str(path), chosen_column="yes", rejected_column="no")).train_pairs


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", RENAMED)
    data = DataSettings(dataset=str(path), prompt_column=("qestion",), chosen_column="good", rejected_column="bad")
    with pytest.raises(DataError, match=r"no column 'qestion'; it has \['bad', .*Did you mean question"):
        acquired(tmp_path, data)


def test_the_politeness_pairs(tmp_path: Path) -> None:
    path = shared("data", "rasbt-dpo", "instruction-data-with-preference.json")
    found = acquired(tmp_path, DataSettings(dataset=str(path), prompt_column=("instruction", "input")))
    assert found.train_report.dropped == {"equal sides": 6}
    assert found.train_pairs + found.test_pairs == 1094


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_path": Path("x.jsonl")}, "test_path has no effect on dataset=hhh"),
        ({"prompt_column": ("x",)}, "prompt_column has no effect on dataset=hhh"),
        ({"dataset_config": "x"}, "dataset_config has no effect on dataset=hhh"),
        ({"dataset": "demo", "data_path": Path()}, "data_path has no effect on dataset=demo"),
        ({"data_path": Path(), "dataset_revision": "main"}, "no revisions"),
        ({"dataset": "hub:a/b", "test_split": "t", "test_path": Path("x")}, "both hold out"),
        ({"dataset": "{file}", "dataset_revision": "main"}, "dataset_revision has no effect"),
        ({"dataset": "{file}", "test_split": "test"}, "test_split has no effect"),
    ],
)
def test_a_setting_that_nothing_would_read_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    file = write_rows(tmp_path / "x.jsonl", pair_rows(2))
    given = {name: str(file) if value == "{file}" else value for name, value in settings.items()}
    with pytest.raises(RecipeError, match=message):
        acquire.pin_source(DataSettings(**given))


def test_the_demos_size_is_its_models_too_and_goes_with_any_dataset(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "x.jsonl", pair_rows(2))
    assert acquire.pin_source(DataSettings(dataset=str(file), demo_pairs=100)) == str(file)


def test_a_data_path_that_is_not_there() -> None:
    with pytest.raises(DataError, match="There is no nowhere"):
        acquire.pin_source(DataSettings(dataset="tulu3", data_path=Path("nowhere")))


def test_the_same_file_under_other_rules_is_other_content(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "x.jsonl", pair_rows(2))
    named = DataSettings(dataset="tulu3", data_path=file)
    assert acquire.source_identity(str(file), named) != acquire.source_identity(
        str(file), DataSettings(dataset=str(file))
    )


def test_a_directorys_digest_is_that_of_its_visible_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "dir" / "train.jsonl", pair_rows(2))
    before = acquire.source_digest(str(tmp_path / "dir"))
    (tmp_path / "dir" / ".lock").write_text("")
    assert acquire.source_digest(str(tmp_path / "dir")) == before
    write_rows(tmp_path / "dir" / "train.jsonl", pair_rows(3))
    assert acquire.source_digest(str(tmp_path / "dir")) != before


def test_a_line_of_ten_megabytes_is_a_row_like_any_other(tmp_path: Path) -> None:
    rows = [*pair_rows(20), {"prompt": "long", "chosen": "x" * 10_000_000, "rejected": "short"}]
    found = acquired(tmp_path, DataSettings(dataset=str(write_rows(tmp_path / "x.jsonl", rows))))
    assert found.train_pairs + found.test_pairs == 21


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "p"\n', r"line 1 is not JSON"),
        (b'{"prompt": "\xff"}\n', r"line 1 is not JSON: .*utf-8"),
        (b"[" * 100_000 + b"\n", r"line 1 is not JSON"),
        (b'"text"\n', r"line 1 is a str"),
    ],
)
def test_a_line_that_is_no_json_object_is_an_error_with_its_number(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        acquired(tmp_path, DataSettings(dataset=str(path)))
    assert list((tmp_path / "store" / "acquire").iterdir()) == []


def test_a_cut_off_gzip_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    lines = "".join(json.dumps(row | {"noise": f"{hash(str(row))}"}) + "\n" for row in pair_rows(500))
    path.write_bytes(gzip.compress(lines.encode())[:-300])
    with pytest.raises(DataError, match=r"is cut off: after line \d+, "):
        list(jsonl.read(path, convert_by_columns))


def test_the_first_row_of_each_kind_of_malformed_rows_is_shown(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"prompt": [{"role": "robot", "content": "x"}], "chosen": "c", "rejected": "r"},
        {"prompt": [{"role": "user", "content": 3}], "chosen": "c", "rejected": "r"},
        {"prompt": "lone \ud800", "chosen": "c", "rejected": "r"},
    ]
    path = write_rows(tmp_path / "x.jsonl", [*pair_rows(90), *bad, *bad])
    report = acquired(tmp_path, DataSettings(dataset=str(path))).train_report
    assert report.dropped == {
        "malformed: content is not a text": 2,
        "malformed: lone surrogate": 2,
        "malformed: unknown role": 2,
    }
    assert report.examples["malformed: unknown role"] == ("x.jsonl:91: role 'robot' is none of system, user, assistant")
    with pytest.raises(DataError, match=re.escape("6 of 96 dataset rows are malformed: 2 unknown role (as x.jsonl:91")):
        acquired(tmp_path, DataSettings(dataset=str(path), max_dropped_fraction=0.05), "other")


def test_whole_conversations_in_our_schema_are_not_taken_for_replies() -> None:
    before = [{"role": "user", "content": "p"}]
    row = {"prompt": "p", "chosen": [*before, {"role": "assistant", "content": "c"}], "rejected": "r"}
    outcome = convert_by_columns(row, "row")
    assert isinstance(outcome, Dropped)
    outcome = convert_by_columns(row | {"rejected": [*before, {"role": "assistant", "content": "r"}]}, "row")
    assert not isinstance(outcome, Dropped)
    assert outcome.prompt == before
