"""Files of preferences: three schemas, every row accounted for, broken ones named."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_core.data.datasets.hhh import transcript
from dpo_core.data.datasets.registry import convert_by_columns
from dpo_core.data.preference import Preference
from dpo_core.data.readers import jsonl
from dpo_core.data.row_outcome import Dropped, Malformed
from dpo_core.errors import DataError
from tests.conftest import shared

Writer = Callable[..., Path]


def only(row: Any) -> Preference | Dropped:
    return convert_by_columns(row, "row")


def test_texts_become_a_users_and_an_assistants_message() -> None:
    pair = only({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"})
    assert isinstance(pair, Preference)
    assert pair.prompt == [{"role": "user", "content": "Hi"}]
    assert pair.sides.chosen == [{"role": "assistant", "content": "Hello"}]


def test_messages_keep_their_role_and_content_and_leave_other_columns() -> None:
    turn = {"role": "user", "content": "Hi", "name": None, "tool_calls": []}
    pair = only({"prompt": [{"role": "system", "content": "Be kind."}, turn], "chosen": "Hello", "rejected": "Go"})
    assert isinstance(pair, Preference)
    assert pair.prompt == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def test_a_messages_trainable_flag_is_kept_and_must_be_one() -> None:
    reply = {"role": "assistant", "content": "Hello", "trainable": False}
    pair = only({"prompt": "Hi", "chosen": [reply], "rejected": [reply | {"content": "Go", "trainable": None}]})
    assert isinstance(pair, Preference)
    assert pair.sides.chosen == [reply]
    assert pair.sides.rejected == [{"role": "assistant", "content": "Go"}]
    wrong = only({"prompt": "Hi", "chosen": [reply | {"trainable": "yes"}], "rejected": "Go"})
    assert isinstance(wrong, Dropped)
    assert wrong.cause == "malformed: trainable is not a flag"


def test_upstreams_schema_with_its_labels() -> None:
    comparison = {
        "prompt_conversation": [{"role": "user", "content": "Hi"}],
        "completion_A": [{"role": "assistant", "content": "A"}],
        "completion_B": [{"role": "assistant", "content": "B"}],
    }
    first, second = only({"comparison": comparison, "label": "A"}), only({"comparison": comparison, "label": "B"})
    assert isinstance(first, Preference)
    assert isinstance(second, Preference)
    assert first.sides == second.sides.swap()
    assert only({"comparison": comparison, "label": "Tie"}) == Dropped("tie", "row")


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "equal sides"),
        ({"prompt": "p", "chosen": " \n", "rejected": "r"}, "empty reply"),
        ({"prompt": [], "chosen": "c", "rejected": "r"}, "malformed: no message"),
        ({"prompt": " ", "chosen": "c", "rejected": "r"}, "malformed: empty prompt"),
        ({"prompt": 3, "chosen": "c", "rejected": "r"}, "malformed: neither text nor messages"),
        ({"prompt": ["hi"], "chosen": "c", "rejected": "r"}, "malformed: neither text nor messages"),
        ({"prompt": [{"role": "robot", "content": "x"}], "chosen": "c", "rejected": "r"}, "malformed: unknown role"),
        (
            {"prompt": [{"role": "user", "content": 3}], "chosen": "c", "rejected": "r"},
            "malformed: content is not a text",
        ),
        ({"prompt": "p", "chosen": [{"role": "user", "content": "p"}], "rejected": "r"}, "different prompts"),
        ({"prompt": "\ud800", "chosen": "c", "rejected": "r"}, "malformed: lone surrogate"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "malformed: empty prompt"),
        ({"chosen": "Hello", "rejected": "\n\nHuman: b"}, "malformed: not a transcript"),
        ({"chosen": 3, "rejected": "\n\nHuman: b"}, "malformed: not a transcript"),
        ({"comparison": "x", "label": "A"}, "malformed: neither text nor messages"),
        ({"comparison": {}, "label": "C"}, "malformed: unknown label"),
    ],
)
def test_rows_that_teach_nothing_are_dropped_by_cause(row: Any, cause: str) -> None:
    dropped = only(row)
    assert isinstance(dropped, Dropped)
    assert dropped.cause == cause


def test_a_transcript_is_split_at_speakers_after_blank_lines_only() -> None:
    text = "\n\nHuman: Who said\nHuman: hello?\n\nAssistant: The Assistant: did.\n\nHuman: Thanks\n\nAssistant: Sure"
    assert [message["role"] for message in transcript(text)] == ["user", "assistant", "user", "assistant"]
    assert transcript(text)[0]["content"] == "Who said\nHuman: hello?"
    with pytest.raises(Malformed, match="No speaker at all"):
        transcript("No speaker at all")


def test_transcripts_must_share_all_but_the_last_message() -> None:
    chosen, rejected = "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: z\n\nAssistant: c"
    assert only({"chosen": chosen, "rejected": rejected}) == Dropped("different prompts", "row")


@pytest.mark.parametrize(
    ("name", "rows", "kept", "dropped"),
    [
        ("harmless-base-test-first1200.jsonl.gz", 1200, 1196, {"empty reply": 4}),
        ("helpful-base-train-first100.jsonl", 100, 100, {}),
        ("harmless-base-train-first100.jsonl", 100, 100, {}),
        ("helpful-online-train-first100.jsonl", 100, 98, {"equal sides": 1, "empty reply": 1}),
        ("helpful-rejection-sampled-train-first100.jsonl", 100, 95, {"equal sides": 5}),
    ],
)
def test_counts_on_the_real_hh_files(name: str, rows: int, kept: int, dropped: dict[str, int]) -> None:
    results = list(jsonl.read(shared("data", "hh-rlhf", name), convert_by_columns))
    assert len(results) == rows
    assert sum(isinstance(result, Preference) for result in results) == kept
    assert Counter(result.cause for result in results if isinstance(result, Dropped)) == dropped


def test_gzip_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}).encode()))
    assert len(list(jsonl.read(path, convert_by_columns))) == 1


def test_bad_files_are_refused_by_name_and_line(tmp_path: Path, write_jsonl: Writer) -> None:
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    broken = write_jsonl([good], "broken.jsonl")
    with broken.open("a") as stream:
        stream.write("{not json\n")
    for path, message in (
        (tmp_path / "missing.jsonl", "There is no dataset file"),
        (write_jsonl([], "empty.jsonl"), "is empty"),
        (broken, r"broken.jsonl, line 2 is not JSON"),
        (write_jsonl([good, [1]], "list.jsonl"), r"line 2 is a list"),
        (write_jsonl([{"question": "q", "answer": "a"}], "columns.jsonl"), r"has columns \['answer', 'question'\]"),
    ):
        with pytest.raises(DataError, match=message):
            list(jsonl.read(path, convert_by_columns))
