"""Prompts stage of IFEval: rows keep the official schema, and errors are found before training."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from inspect_ai._util.appdirs import inspect_cache_dir
from inspect_ai._util.file import safe_filename

from dpo_core.cache.store import Store
from dpo_core.config.recipe import Recipe
from dpo_core.errors import DataError, EvaluationError, from_json
from dpo_core.evaluate.ifeval.ifeval_checkers import IFEvalPrompt
from dpo_core.evaluate.ifeval.ifeval_prompts import HUB_ID, HUB_REVISION, inspect_cached_prompts, read_prompts, run
from dpo_core.pipeline.evaluation_plan import prompts_source
from dpo_core.records import PromptSet
from dpo_core.stages.evaluation.prompts import PromptsRequest

PromptFile = Callable[[dict[str, dict[str, Any]]], Path]
GOOD = {"key": 7, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def fetch(
    directory: Path, source: str, limit: int | None = None, seed: int = 0
) -> tuple[PromptSet, list[IFEvalPrompt]]:
    """The published record and the rows that its file holds."""
    store = Store(directory / "store")
    with store.write("prompts", "key") as draft:
        run(PromptsRequest(source=source, seed=seed, limit=limit, demo_pairs=64), draft)
    record = store.find("prompts", "key", PromptSet)
    assert record is not None
    return record, [row for _, row in read_prompts(record.path)]


def error_message(directory: Path, *lines: str) -> str:
    """The stage's error message for a file with these lines."""
    file = directory / "prompts.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        fetch(directory, str(file))
    assert not (directory / "store" / "prompts" / "key").exists()
    return str(caught.value)


def prompt_line(**fields: Any) -> str:
    return json.dumps(GOOD | fields)


def test_every_official_prompt_is_kept(
    ifeval_data: Path, punkt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nltk.data.path", [str(punkt)])
    record, rows = fetch(tmp_path, str(ifeval_data / "input_data.jsonl"))
    expected = [json.loads(line) for line in (ifeval_data / "input_data.jsonl").read_text().splitlines()]
    assert (record.prompts, len(rows)) == (541, 541)
    assert [row.__dict__ for row in rows] == expected


def test_limit_reads_only_the_first_rows(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join([prompt_line(key=1), prompt_line(key=2), "not JSON"]))
    record, rows = fetch(tmp_path, str(file), limit=2)
    assert (record.prompts, [row.key for row in rows]) == (2, [1, 2])


def test_demo_prompts(tmp_path: Path) -> None:
    """Enough of them for the demo's targets, the same for the same seed only, and of several official types."""
    first, rows = fetch(tmp_path / "a", "demo", seed=1)
    again, _ = fetch(tmp_path / "b", "demo", seed=1)
    other, _ = fetch(tmp_path / "c", "demo", seed=2)
    assert first.prompts >= 200
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len({name for row in rows for name in row.instruction_id_list}) >= 8


def test_null_arguments_are_dropped(tmp_path: Path) -> None:
    """The hub's viewer and Arrow fill what a row does not have with null."""
    (tmp_path / "table.jsonl").write_text(prompt_line(kwargs=[{"num_words": None, "keywords": None}]))
    _, [row] = fetch(tmp_path, str(tmp_path / "table.jsonl"))
    assert row.kwargs == [{}]


def test_prompts_in_the_cache_of_inspect_replace_an_unreachable_hub(
    ifeval_data: Path, punkt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has the directory and name that inspect-ai's hf_dataset gives to the data of inspect_evals/ifeval."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert inspect_cached_prompts() is None
    with pytest.raises(DataError, match="hub cannot be reached"):
        prompts_source(Recipe())
    expected = [json.loads(line) for line in (ifeval_data / "input_data.jsonl").read_text().splitlines()]
    saved = inspect_cache_dir("hf_datasets") / f"{safe_filename(HUB_ID)}-0123abcd"
    Dataset.from_list(expected).save_to_disk(saved)
    assert prompts_source(Recipe()) == str(saved)
    store = Store(tmp_path / "store")
    with store.write("prompts", "key") as draft:
        run(PromptsRequest(source=str(saved), seed=0, limit=None, demo_pairs=64, nltk_data=punkt), draft)
    assert [row.__dict__ for _, row in read_prompts(store.entry("prompts", "key") / "prompts.jsonl")] == expected


def test_a_directory_that_is_no_saved_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no saved dataset"):
        fetch(tmp_path, str(tmp_path))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "no prompts" in error_message(tmp_path, "", "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        fetch(tmp_path, str(tmp_path / "absent.jsonl"))


def test_a_line_that_is_not_json_is_named_by_its_number(tmp_path: Path) -> None:
    message = error_message(tmp_path, prompt_line(), "", "{'key': 8}")
    assert "line 3" in message
    assert "Invalid JSON" in message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key": "7"}, "key: Input should be a valid integer"),
        ({"prompt": ""}, "prompt: String should have at least 1 character"),
        ({"instruction_id_list": []}, "instruction_id_list: List should have at least 1 item"),
        ({"kwargs": [[]]}, "kwargs.0: Input should be an object"),
        ({"kwargs": []}, "1 instructions but 0 kwargs"),
        ({"kwargs": [{"num_words": 3}]}, "arguments that a checker rejects"),
        ({"instruction_id_list": ["punctuation:no_commas"]}, "Did you mean punctuation:no_comma?"),
    ],
)
def test_error_names_the_malformed_row_and_the_reason(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    message = error_message(tmp_path, prompt_line(key=1), prompt_line(**fields))
    assert "line 2" in message
    assert reason in message


def test_a_field_left_out_is_named(tmp_path: Path) -> None:
    assert "line 1: prompt: Field required" in error_message(tmp_path, json.dumps({"key": 1}))


def test_a_repeated_key_is_named_with_both_lines(tmp_path: Path) -> None:
    message = error_message(tmp_path, prompt_line(), prompt_line())
    assert "line 2" in message
    assert "line 1" in message


def run_in_process(directory: Path, source: str, **environment: str) -> tuple[Exception, float]:
    """Run the stage in its own process; its error, and its duration in seconds."""
    (directory / "request.json").write_text(
        PromptsRequest(source=source, seed=0, limit=None, demo_pairs=64).model_dump_json()
    )
    words = [
        sys.executable,
        "-m",
        "dpo_core.process.worker",
        "prompts",
        str(directory / "request.json"),
        str(directory / "store"),
        "key",
        str(os.getpid()),
    ]
    began = time.monotonic()
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    error = from_json((directory / "error.json").read_text())
    assert done.returncode == error.exit_code
    return error, time.monotonic() - began


def test_missing_nltk_data_fail_before_training(tmp_path: Path, prompt_file: PromptFile) -> None:
    file = prompt_file(
        {
            "Write.": {"punctuation:no_comma": {}},
            "Count.": {"length_constraints:number_sentences": {"relation": "at least", "num_sentences": 2}},
        }
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    error, _ = run_in_process(tmp_path, str(file), NLTK_DATA=str(empty), HOME=str(empty))
    assert isinstance(error, EvaluationError)
    assert "set nltk_data=<directory> or NLTK_DATA" in error.remedy
    assert f"line 2 needs NLTK's sentence splitter punkt_tab, which is not in NLTK_DATA={empty}" in str(error)


def test_an_unreachable_hub_fails_at_once(tmp_path: Path) -> None:
    """Port 9 refuses connections; there are no retries."""
    source = f"{HUB_ID}@{HUB_REVISION}"
    error, seconds = run_in_process(tmp_path, source, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hf"))
    assert isinstance(error, DataError)
    assert "ifeval_path=" in error.remedy
    assert "HF_HOME" in error.remedy
    assert "tasks=none" in error.remedy
    assert "\n" not in str(error)
    assert seconds < 30
