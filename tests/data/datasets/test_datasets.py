"""Every published dataset, on rows in its own schema, through ``datasets`` from directories laid out as on the hub."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset

from dpo_core.config.recipe import DataSettings
from dpo_core.data.datasets import chatbot_arena, helpsteer2, helpsteer3, tulu3, ultrafeedback
from dpo_core.data.datasets.registry import DATASETS, convert_by_columns
from dpo_core.data.preference import Preference
from dpo_core.data.readers import jsonl, tables
from dpo_core.data.row_outcome import Dropped, Outcome
from dpo_core.errors import DataError
from tests.conftest import shared
from tests.data.conftest import acquired, pairs_of, write_rows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def hh_row(index: int) -> dict[str, str]:
    prompt = f"\n\nHuman: Question {index}?\n\nAssistant: Which?\n\nHuman: That.\n\nAssistant:"
    return {"chosen": f"{prompt} Good {index}.", "rejected": f"{prompt} Bad {index}."}


def cause(outcome: Outcome) -> str:
    assert isinstance(outcome, Dropped)
    return outcome.cause


def kept(outcome: Outcome) -> Preference:
    assert isinstance(outcome, Preference)
    return outcome


def test_hhh_is_shuffled_with_the_references_seed_and_its_first_test_rows_are_taken(tmp_path: Path) -> None:
    for part in ("harmless-base", "helpful-base"):
        base = 0 if part == "harmless-base" else 100
        write_rows(tmp_path / "hh" / part / "train.jsonl.gz", [hh_row(base + index) for index in range(40)])
        write_rows(tmp_path / "hh" / part / "test.jsonl.gz", [hh_row(1000 + base + index) for index in range(20)])
    found = acquired(tmp_path, DataSettings(dataset="hhh", data_path=tmp_path / "hh", test_size=10))
    hub = load_dataset(str(tmp_path / "hh"))
    expected = [row["chosen"] for row in hub["train"].shuffle(seed=0)]
    assert [f"Good {text.rpartition('Good ')[2]}" for text in expected] == [
        pair.sides.chosen[0]["content"] for pair in pairs_of(found)
    ]
    held_out = hub["test"].shuffle(seed=0).select(range(10))
    assert [row["rejected"].rpartition(" ")[2] for row in held_out] == [
        pair.sides.rejected[0]["content"].rpartition(" ")[2] for pair in pairs_of(found, "test")
    ]


def test_helpsteer3_from_its_configuration_of_the_repository(tmp_path: Path) -> None:
    def rows(start: int, count: int) -> list[dict[str, Any]]:
        return [
            {
                "domain": "general",
                "context": [user(f"Question {index}")],
                "response1": f"first {index}",
                "response2": f"second {index}",
                "overall_preference": (-2, 0, 3)[index % 3],
                "individual_preference": [{"score": 1, "reasoning": "because"}],
            }
            for index in range(start, start + count)
        ]

    write_rows(tmp_path / "hs3" / "preference" / "train.jsonl.gz", rows(0, 30))
    write_rows(tmp_path / "hs3" / "preference" / "validation.jsonl.gz", rows(100, 9))
    write_rows(tmp_path / "hs3" / "feedback" / "train.jsonl.gz", [{"feedback": "another schema"}])
    found = acquired(tmp_path, DataSettings(dataset="helpsteer3", data_path=tmp_path / "hs3"))
    assert found.train_report.dropped == {"tie": 10}
    assert (found.train_pairs, found.test_pairs) == (20, 6)
    for pair in pairs_of(found):
        index = int(pair.prompt[0]["content"].split()[1])
        assert pair.sides.chosen[0]["content"] == f"{'first' if index % 3 == 0 else 'second'} {index}"


def test_helpsteer3_on_the_cards_rows() -> None:
    rows = list(jsonl.read(shared("data", "helpsteer3", "preference_readme_examples.jsonl"), helpsteer3.convert))
    first = kept(rows[0])
    raw = json.loads(shared("data", "helpsteer3", "preference_readme_examples.jsonl").read_text().splitlines()[0])
    assert len(rows) == 2
    assert first.sides.chosen[0]["content"] == raw["response1"]  # overall_preference is -2
    assert first.prompt == raw["context"]


def test_helpsteer3_refuses_a_preference_that_is_no_number() -> None:
    row = {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": None}
    assert cause(helpsteer3.convert(row, "row")) == "malformed: no preference"


def h4_row(index: int, better: float, worse: float, same: bool = False) -> dict[str, Any]:
    prompt = f"Question {index}"
    sides = [user(prompt), assistant("good")], [user(prompt), assistant("good" if same else "bad")]
    return {
        "prompt": prompt,
        "prompt_id": str(index),
        "chosen": sides[0],
        "rejected": sides[1],
        "messages": sides[0],
        "score_chosen": better,
        "score_rejected": worse,
    }


def test_ultrafeedback_as_h4_publishes_it(tmp_path: Path) -> None:
    rows = [h4_row(index, 8.0, 8.0 if index % 5 == 0 else 3.0) for index in range(20)]
    write_rows(tmp_path / "uf" / "data" / "train_prefs-00000-of-00001.parquet", rows)
    write_rows(tmp_path / "uf" / "data" / "test_prefs-00000-of-00001.parquet", [h4_row(99, 2, 1), h4_row(3, 2, 1)])
    write_rows(tmp_path / "uf" / "data" / "train_sft-00000-of-00001.parquet", rows)
    # Named by the card, as on the hub: datasets does not know such split names by themselves.
    names = ("train_prefs", "test_prefs", "train_sft")
    files = "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in names)
    (tmp_path / "uf" / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    found = acquired(tmp_path, DataSettings(dataset="ultrafeedback", data_path=tmp_path / "uf"))
    assert found.train_report.dropped == {"prompt is in the test split": 1, "tie": 4}
    assert (found.train_pairs, found.test_pairs) == (15, 2)


def test_ultrafeedback_as_argilla_publishes_it(tmp_path: Path) -> None:
    rows = [
        {
            "source": "x",
            "instruction": f"Question {index}",
            "chosen_response": f"good {index}",
            "rejected_response": f"bad {index}",
            "chosen_avg_rating": 5.0,
            "rejected_avg_rating": 5.0 if index == 7 else 2.0,
        }
        for index in range(60)
    ]
    write_rows(tmp_path / "uf" / "data" / "train-00000-of-00001.parquet", rows)
    found = acquired(tmp_path, DataSettings(dataset="ultrafeedback", data_path=tmp_path / "uf"))
    order = Dataset.from_list(rows).shuffle(seed=0)
    ties = [row["instruction"] for row in order.select(range(6)) if row["instruction"] == "Question 7"]
    assert [pair.prompt[0]["content"] for pair in pairs_of(found, "test")] == [
        row["instruction"] for row in order.select(range(6)) if row["instruction"] not in ties
    ]
    assert found.train_pairs + found.test_pairs == 59


def test_ultrafeedbacks_ties_and_turns() -> None:
    assert cause(ultrafeedback.convert(h4_row(1, 5, 5), "row")) == "tie"
    assert cause(ultrafeedback.convert(h4_row(1, 5, 4, same=True), "row")) == "equal sides"
    longer = h4_row(1, 5, 4) | {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")]}
    assert cause(ultrafeedback.convert(longer, "row")) == "malformed: not a single turn"


@pytest.mark.parametrize("reading", [ultrafeedback.convert, convert_by_columns])
def test_ultrafeedbacks_counts_on_the_real_rows(reading: Any) -> None:
    rows = list(jsonl.read(shared("data", "ultrafeedback", "train_prefs_first400.jsonl"), reading))
    assert len(rows) == 400
    assert sum(isinstance(row, Preference) for row in rows) == 357
    assert Counter(row.cause for row in rows if isinstance(row, Dropped)) == {"tie": 43}


def test_tulu3_on_real_rows(tmp_path: Path) -> None:
    path = shared("data", "tulu3", "preference_sample.jsonl")
    found = acquired(tmp_path, DataSettings(dataset="tulu3", data_path=path))
    assert (found.train_pairs, found.test_pairs) == (90, 10)
    raw = {row["prompt"]: row for row in map(json.loads, path.read_text().splitlines())}
    pair = pairs_of(found)[0]
    assert pair.sides.chosen[0]["content"] == raw[pair.prompt[0]["content"]]["chosen"][-1]["content"]


def test_tulu3_keeps_turns_and_system_messages() -> None:
    before = [{"role": "system", "content": "Be kind."}, user("a"), assistant("b"), user("c")]
    pair = kept(tulu3.convert({"chosen": [*before, assistant("yes")], "rejected": [*before, assistant("no")]}, "row"))
    assert pair.prompt == before
    other = [*before[:-1], user("d"), assistant("no")]
    assert cause(tulu3.convert({"chosen": [*before, assistant("yes")], "rejected": other}, "")) == "different prompts"


def vote(winner: str, **contents: Any) -> dict[str, Any]:
    def part(text: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text, "image": None, "mimeType": None}]

    shared_turn = {"role": "user", "content": contents.get("first", part("Hi"))}
    sides = [
        [shared_turn, assistant(""), user(""), assistant("")],
        [shared_turn, assistant(""), user(""), assistant("")],
    ]
    for name, side in zip("ab", sides, strict=True):
        for turn, text in zip(side[1:], (f"{name} one", "more", f"{name} two"), strict=True):
            turn["content"] = part(text)  # type: ignore[assignment]
    return {"id": "1", "winner": winner, "conversation_a": sides[0], "conversation_b": sides[1], "language": "en"}


def test_arenas_prompt_is_what_both_conversations_share() -> None:
    pair = kept(chatbot_arena.convert(vote("model_b"), "row"))
    assert pair.prompt == [user("Hi")]
    assert pair.sides.chosen == [assistant("b one"), user("more"), assistant("b two")]
    assert kept(chatbot_arena.convert(vote("model_a"), "row")).sides == pair.sides.swap()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (vote("tie"), "tie"),
        (vote("both_bad"), "tie"),
        (vote("nobody"), "malformed: unknown winner"),
        (vote("model_a", first=[{"type": "image", "text": None, "image": "x"}]), "not only text"),
        (vote("model_a") | {"conversation_b": "x"}, "malformed: neither text nor messages"),
        (vote("model_a") | {"conversation_b": [user("Bye"), assistant("x")]}, "different prompts"),
    ],
)
def test_votes_that_teach_nothing(row: dict[str, Any], expected: str) -> None:
    if expected == "malformed: neither text nor messages":
        row = row | {"conversation_b": ["x"]}
    assert cause(chatbot_arena.convert(row, "row")) == expected


def test_arena_from_parquet(tmp_path: Path) -> None:
    rows = [
        vote(
            ("model_a", "tie")[index % 2],
            first=[{"type": "text", "text": f"Question {index}", "image": None, "mimeType": None}],
        )
        for index in range(40)
    ]
    write_rows(tmp_path / "arena" / "data" / "train-00000-of-00001.parquet", rows)
    found = acquired(tmp_path, DataSettings(dataset="arena", data_path=tmp_path / "arena"))
    assert found.train_pairs + found.test_pairs == 20


def rating(prompt: str, response: str, helpfulness: int) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": 1}


def test_helpsteer2_takes_a_prompts_best_against_its_worst(tmp_path: Path) -> None:
    spread = [
        rating(f"Question {index}", text, score) for text, score in (("good", 4), ("bad", 1)) for index in range(20)
    ]
    rows = [
        *spread,
        rating("Tie", "x", 2),
        rating("Tie", "y", 2),
        rating("Alone", "z", 3),
        rating("Question 0", "mid", 2),
    ]
    write_rows(tmp_path / "hs2" / "train.jsonl.gz", rows)
    write_rows(tmp_path / "hs2" / "validation.jsonl.gz", [rating("Held out", "good", 3), rating("Held out", "bad", 0)])
    found = acquired(tmp_path, DataSettings(dataset="helpsteer2", data_path=tmp_path / "hs2"))
    assert found.train_report.dropped == {"single response": 1, "tie": 1}
    assert (found.train_pairs, found.test_pairs) == (20, 1)
    for pair in pairs_of(found):
        assert (pair.sides.chosen, pair.sides.rejected) == ([assistant("good")], [assistant("bad")])


def test_helpsteer2s_turns() -> None:
    assert helpsteer2.parse_turns("a\n<extra_id_1>Assistant\nb\nc\n<extra_id_1>User\nd") == [
        user("a"),
        assistant("b\nc"),
        user("d"),
    ]
    row = {"prompt": 3, "helpfulness": [1, 2], "response": ["a", "b"]}
    assert cause(helpsteer2.convert(row, "row")) == "malformed: no rating"


def test_the_order_of_shuffling_is_that_of_datasets() -> None:
    rows = Dataset.from_dict({"number": list(range(1000))})
    assert rows.shuffle(seed=0)["number"][:] == list(tables.shuffled_order(1000, 0))


def test_named_datasets_are_pinned_by_repository(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean helpsteer3"):
        acquired(tmp_path, DataSettings(dataset="helpster3"))
    assert {name: dataset.hub_id for name, dataset in DATASETS.items()} == {
        "hhh": "Anthropic/hh-rlhf",
        "helpsteer3": "nvidia/HelpSteer3",
        "ultrafeedback": "argilla/ultrafeedback-binarized-preferences",
        "tulu3": "allenai/llama-3.1-tulu-3-8b-preference-mixture",
        "arena": "lmarena-ai/arena-human-preference-140k",
        "helpsteer2": "nvidia/HelpSteer2",
    }


def test_rows_of_another_dataset_are_malformed_by_their_missing_column(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "hh.jsonl", [hh_row(index) for index in range(20)])
    message = (
        r"20 of 20 dataset rows are malformed: 20 missing column \(as hh.jsonl:1: no column 'overall_preference'\)"
    )
    with pytest.raises(DataError, match=message):
        acquired(tmp_path, DataSettings(dataset="helpsteer3", data_path=path))
