"""The demo: checkers accept chosen answers and refuse rejected ones, and no prompt is in two splits."""

import json
from collections import Counter
from typing import Any

import pytest

from dpo_core.data.demo import demo_pairs
from dpo_core.data.demo.demo_pairs import Demo
from dpo_core.evaluate.ifeval.ifeval_checkers import ROW, score


@pytest.fixture(scope="module")
def demo() -> Demo:
    return demo_pairs.generate(pairs=600, seed=0)


def content(row: dict[str, Any], side: str) -> str:
    return str(row[side][-1]["content"])


def test_the_official_checkers_accept_every_chosen_answer_and_refuse_every_rejected_one() -> None:
    """Over tasks of both splits, with every type of instruction among them."""
    from random import Random

    kinds: Counter[str] = Counter()
    for held_out in (False, True):
        rng = Random(held_out)
        for key, task in zip(range(300), demo_pairs.generate_tasks(rng, set(), held_out), strict=False):
            row = ROW.validate_python(demo_pairs.ifeval_row(key, task))
            pair = demo_pairs.pair_row(task, rng)
            assert all(score(row, content(pair, "chosen")).strict), (task.prompt, content(pair, "chosen"))
            assert not all(score(row, content(pair, "rejected")).strict), (task.prompt, content(pair, "rejected"))
            kinds.update(instruction.id for instruction in task.instructions)
    assert len(kinds) >= 12
    assert min(kinds.values()) >= 10


def test_no_prompt_is_in_two_splits(demo: Demo) -> None:
    parts = [
        [content(row, "prompt") for row in demo.train],
        [content(row, "prompt") for row in demo.test],
        [row["prompt"] for row in demo.prompts],
    ]
    prompts = [prompt for part in parts for prompt in part]
    assert len(prompts) == len(set(prompts))
    assert [len(part) for part in parts] == [600, 240, 240]


def test_no_held_out_request_is_in_training(demo: Demo) -> None:
    def request(prompt: str) -> str:
        return prompt.split(". ")[0].split("? ")[0]

    training = {request(content(row, "prompt")) for row in demo.train}
    held_out = {request(row["prompt"]) for row in demo.prompts} | {request(content(row, "prompt")) for row in demo.test}
    assert len(held_out) > 30
    assert not training & held_out


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data(demo: Demo) -> None:
    again = demo_pairs.generate(pairs=600, seed=0)
    assert json.dumps(demo.train) == json.dumps(again.train)
    assert demo.prompts == again.prompts
    assert demo.prompts != demo_pairs.generate(pairs=600, seed=1).prompts


def test_both_sides_are_about_the_same_and_differ(demo: Demo) -> None:
    assert all(content(row, "chosen") != content(row, "rejected") for row in demo.train)
    lengths = {side: sum(len(content(row, side)) for row in demo.train) for side in ("chosen", "rejected")}
    assert 0.8 < lengths["chosen"] / lengths["rejected"] < 1.25


def test_training_asks_for_two_instructions_at_once_more_often_than_the_held_out_prompts() -> None:
    from random import Random

    shares = {}
    for held_out in (False, True):
        drawn = [
            task for task, _ in zip(demo_pairs.generate_tasks(Random(0), set(), held_out), range(400), strict=False)
        ]
        shares[held_out] = sum(len(task.instructions) == 2 for task in drawn) / len(drawn)
    assert shares[False] == pytest.approx(demo_pairs.TWO_TRAINED, abs=0.08)
    assert shares[True] == pytest.approx(demo_pairs.TWO_HELD_OUT, abs=0.06)
