"""The demo: checkers accept chosen answers and refuse rejected ones, and no prompt is in two splits."""

import json
from collections import Counter
from typing import Any

import pytest

from dpo_core.data.demo import demo_pairs
from dpo_core.data.demo.demo_pairs import Demo
from dpo_core.evaluate.ifeval.ifeval_checkers import ROW, score


@pytest.fixture(scope="module")
def made() -> Demo:
    return demo_pairs.generate(pairs=600, seed=0)


def said(row: dict[str, Any], side: str) -> str:
    return str(row[side][-1]["content"])


def test_the_official_checkers_accept_every_chosen_answer_and_refuse_every_rejected_one() -> None:
    """Over tasks of both splits, with every type of instruction among them."""
    from random import Random

    kinds: Counter[str] = Counter()
    for held_out in (False, True):
        rng = Random(held_out)
        for key, task in zip(range(300), demo_pairs.tasks(rng, set(), held_out), strict=False):
            row = ROW.validate_python(demo_pairs.ifeval_row(key, task))
            pair = demo_pairs.pair_row(task, rng)
            assert all(score(row, said(pair, "chosen")).strict), (task.prompt, said(pair, "chosen"))
            assert not all(score(row, said(pair, "rejected")).strict), (task.prompt, said(pair, "rejected"))
            kinds.update(instruction.id for instruction in task.instructions)
    assert len(kinds) >= 12
    assert min(kinds.values()) >= 10


def test_no_prompt_is_in_two_splits(made: Demo) -> None:
    parts = [
        [said(row, "prompt") for row in made.train],
        [said(row, "prompt") for row in made.test],
        [row["prompt"] for row in made.prompts],
    ]
    whole = [prompt for part in parts for prompt in part]
    assert len(whole) == len(set(whole))
    assert [len(part) for part in parts] == [600, 240, 240]


def test_what_is_held_out_is_never_asked_in_training(made: Demo) -> None:
    def asked(prompt: str) -> str:
        return prompt.split(". ")[0].split("? ")[0]

    training = {asked(said(row, "prompt")) for row in made.train}
    held_out = {asked(row["prompt"]) for row in made.prompts} | {asked(said(row, "prompt")) for row in made.test}
    assert len(held_out) > 30
    assert not training & held_out


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data(made: Demo) -> None:
    again = demo_pairs.generate(pairs=600, seed=0)
    assert json.dumps(made.train) == json.dumps(again.train)
    assert made.prompts == again.prompts
    assert made.prompts != demo_pairs.generate(pairs=600, seed=1).prompts


def test_both_sides_are_about_the_same_and_differ(made: Demo) -> None:
    assert all(said(row, "chosen") != said(row, "rejected") for row in made.train)
    lengths = {side: sum(len(said(row, side)) for row in made.train) for side in ("chosen", "rejected")}
    assert 0.8 < lengths["chosen"] / lengths["rejected"] < 1.25


def test_training_asks_for_two_instructions_at_once_more_often_than_the_held_out_prompts() -> None:
    from random import Random

    shares = {}
    for held_out in (False, True):
        drawn = [task for task, _ in zip(demo_pairs.tasks(Random(0), set(), held_out), range(400), strict=False)]
        shares[held_out] = sum(len(task.instructions) == 2 for task in drawn) / len(drawn)
    assert shares[False] == pytest.approx(demo_pairs.TWO_TRAINED, abs=0.08)
    assert shares[True] == pytest.approx(demo_pairs.TWO_HELD_OUT, abs=0.06)
