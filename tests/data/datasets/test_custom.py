"""Custom datasets: in our interface, in upstream's, as a HubDataset; and the errors for invalid ones."""

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_core.config.recipe import DataSettings
from dpo_core.data import acquire
from dpo_core.errors import DataError, RecipeError
from tests.conftest import ROOT, pair_rows
from tests.data.conftest import acquired, pairs_of, write_rows

Module = Callable[[str], str]
NUMBER = itertools.count()

UPSTREAM = """
from datasets import Dataset

from dpo_core.data.datasets.builder_records import Comparison, LabeledComparison

class Builder:
    swap = False

    def get_train_and_test_datasets(self):
        rows = Dataset.from_list([{"number": number} for number in range(20)])
        return rows, {test}

    def example_to_labeled_comparison(self, row):
        number = row["number"]
        if number == 3:
            return None
        sides = [[{"role": "assistant", "content": f"{name} {number}"}] for name in ("a", "b")]
        prompt = [{"role": "user", "content": f"Question {number}"}]
        return LabeledComparison(Comparison(prompt, *sides), "AB"[number % 2] if number != 4 else "Tie")
"""

OURS = """
from dpo_core.data.preference import Preference
from dpo_core.data.row_outcome import Dropped
from dpo_core.pair import Pair

class Builder:
    fingerprint = "1"

    def splits(self):
        return [(f"Question {number}", "good", "bad") for number in range(20)], [("Question 1", "good", "bad")]

    def convert(self, row, where):
        prompt, *sides = row
        if prompt == "Question 2":
            return Dropped("too easy", where)
        chosen, rejected = ([{"role": "assistant", "content": side}] for side in sides)
        return Preference([{"role": "user", "content": prompt}], Pair(chosen, rejected))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes a module into the directory that is worked in; returns the name of the Builder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        name = f"custom_{next(NUMBER)}"
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:Builder"

    return write


def test_upstreams_two_methods(tmp_path: Path, module: Module) -> None:
    test = 'Dataset.from_list([{"number": 8}])'
    found = acquired(tmp_path, DataSettings(dataset=module(UPSTREAM.replace("{test}", test))))
    assert found.train_report.dropped == {"left out by the builder": 1, "prompt is in the test split": 1, "tie": 1}
    assert (found.train_pairs, found.test_pairs) == (17, 1)
    pair = pairs_of(found)[1]
    assert [pair.sides.chosen[0]["content"], pair.sides.rejected[0]["content"]] == ["b 1", "a 1"]


def test_without_test_rows_pairs_are_held_out_by_prompt(tmp_path: Path, module: Module) -> None:
    found = acquired(tmp_path, DataSettings(dataset=module(UPSTREAM.replace("{test}", "None"))))
    assert (found.train_pairs, found.test_pairs) == (17, 1)


def test_our_interface(tmp_path: Path, module: Module) -> None:
    found = acquired(tmp_path, DataSettings(dataset=module(OURS)))
    assert found.train_report.dropped == {"prompt is in the test split": 1, "too easy": 1}
    assert (found.train_pairs, found.test_pairs) == (18, 1)


def test_a_description_as_a_built_in_dataset_has_it(tmp_path: Path, module: Module) -> None:
    name = module(
        "from dpo_core.data.conversation import labelled, tolerant\n"
        "from dpo_core.data.datasets.hub_dataset import HubDataset\n\n"
        "@tolerant\n"
        "def convert(row, where):\n"
        "    return labelled(row['q'], row['a'], row['b'], where)\n\n"
        "Builder = HubDataset('me/mine', convert, splits=(('train', 'test'),))\n"
    )
    write_rows(tmp_path / "mine" / "train.parquet", [{"q": f"q {i}", "a": "yes", "b": "no"} for i in range(9)])
    write_rows(tmp_path / "mine" / "test.parquet", [{"q": "other", "a": "yes", "b": "no"}])
    found = acquired(tmp_path, DataSettings(dataset=name, data_path=tmp_path / "mine"))
    assert (found.train_pairs, found.test_pairs) == (9, 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", r"Builder.convert returned a int for mine train row \d"),
        ("return len(row['a'] + 1)", r"Builder.convert raises TypeError for mine train row \d"),
    ],
)
def test_errors_in_a_hub_datasets_conversion_name_the_row(
    tmp_path: Path, module: Module, body: str, message: str
) -> None:
    name = module(
        "from dpo_core.data.datasets.hub_dataset import HubDataset\n\n"
        f"def convert(row, where):\n    {body}\n\n"
        "Builder = HubDataset('me/mine', convert, splits=(('train', 'test'),))\n"
    )
    for split in ("train", "test"):
        write_rows(tmp_path / "mine" / f"{split}.parquet", [{"a": "x"}])
    with pytest.raises(DataError, match=message.replace("train", "test")):
        acquired(tmp_path, DataSettings(dataset=name, data_path=tmp_path / "mine"))


def test_a_builder_is_identified_by_its_code_and_fingerprint_or_else_read_again(module: Module) -> None:
    fingerprinted, unfingerprinted = (
        DataSettings(dataset=module(OURS)),
        DataSettings(dataset=module(UPSTREAM.replace("{test}", "None"))),
    )
    assert acquire.source_identity(fingerprinted.dataset, fingerprinted) == acquire.source_identity(
        fingerprinted.dataset, fingerprinted
    )
    assert acquire.source_identity(unfingerprinted.dataset, unfingerprinted) != acquire.source_identity(
        unfingerprinted.dataset, unfingerprinted
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", "does not import: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("1 / 0", "does not import: ZeroDivisionError: division by zero"),
        ("def broken(:", "does not import: SyntaxError"),
        ("class Bilder: ...", "has no Builder.*Did you mean Bilder"),
    ],
)
def test_a_module_that_does_not_import_or_has_no_such_class(module: Module, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        acquire.pin_source(DataSettings(dataset=module(text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Builder: ...", "has no method splits"),
        (UPSTREAM.replace("def example_to", "def example_from"), "has no method example_to_labeled_comparison"),
        ("class Builder:\n    def splits(self): ...", "has no method convert"),
        (OURS.replace('fingerprint = "1"', "def __init__(self, path): ..."), r"raises TypeError: .*without arguments"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_before_any_work(module: Module, text: str, message: str) -> None:
    data = DataSettings(dataset=module(text.replace("{test}", "None")))
    with pytest.raises(RecipeError, match=message):
        acquire.source_identity(acquire.pin_source(data), data)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return rows, {test}", "return rows", "get_train_and_test_datasets returned Dataset"),
        ("return rows, {test}", "return 3, None", r"get_train_and_test_datasets returned \(3, None\)"),
        ("return rows, {test}", "raise OSError('gone')", "get_train_and_test_datasets raises OSError: gone"),
        ("return None", "return 7", "returned a int for .*:Builder train row 3"),
        ("return None", "raise KeyError('x')", "raises KeyError for .*:Builder train row 3: 'x'"),
    ],
)
def test_what_a_builder_returns_wrongly_is_named_with_the_row(
    tmp_path: Path, module: Module, old: str, new: str, message: str
) -> None:
    data = DataSettings(dataset=module(UPSTREAM.replace(old, new).replace("{test}", "None")))
    with pytest.raises(DataError, match=message):
        acquired(tmp_path, data)
    assert list((tmp_path / "store" / "acquire").iterdir()) == []


def test_a_builders_malformed_rows_are_counted(tmp_path: Path, module: Module) -> None:
    text = UPSTREAM.replace("{test}", "None").replace("return None", 'return LabeledComparison(None, "A")')
    found = acquired(tmp_path, DataSettings(dataset=module(text)))
    assert found.train_report.dropped["malformed: neither text nor messages"] == 1


def test_a_file_with_a_colon_is_a_file(tmp_path: Path, module: Module) -> None:
    path = write_rows(tmp_path / "a:b", pair_rows(2))
    with pytest.raises(DataError, match=re.escape("not a dataset file of a known kind")):
        acquire.pin_source(DataSettings(dataset=path.name))


def test_the_documented_dataset_works_as_it_is_printed(tmp_path: Path, module: Module) -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    text = page.split("## Add a dataset")[1].split("```python\n")[1].split("```")[0]
    name = module(text).replace(":Builder", ":DATASET")
    rows = [
        {"question": f"q {i}", "answer_a": "x", "answer_b": "y", "rating_a": 1, "rating_b": i % 3} for i in range(30)
    ]
    write_rows(tmp_path / "prefs" / "train.parquet", rows)
    write_rows(tmp_path / "prefs" / "test.parquet", [rows[2] | {"question": "held out"}])
    found = acquired(tmp_path, DataSettings(dataset=name, data_path=tmp_path / "prefs"))
    assert found.train_report.dropped == {"tie": 10}
    assert {pair.sides.chosen[0]["content"] for pair in pairs_of(found)} == {"x", "y"}
