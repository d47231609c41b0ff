"""The built-in demonstration: preferences that teach to follow instructions which a program can verify.

Every prompt asks for a short text and carries one or two instructions of IFEval's official types (arXiv 2311.07911).
The chosen answer obeys all of them; the rejected one is as fluent and as much on topic, and breaks at least one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from dpo_core.data.demo.demo_instructions import Instruction, several, styles
from dpo_core.data.demo.demo_responses import Topic, write
from dpo_core.data.demo.demo_vocabulary import SUBJECTS

Row = dict[str, Any]

TEST_PAIRS, PROMPTS = 240, 240
HELD_OUT_EVERY = 4
# Shares of prompts with two instructions. Training has more of them: two at once are what a small model fails at.
TWO_HELD_OUT, TWO_TRAINED = 0.15, 0.35
SAME_CONTENT = 0.9


@dataclass(frozen=True, slots=True)
class Demo:
    """The generated splits; no two share a prompt, and ``test`` and ``prompts`` ask what is never asked in training.

    ``train`` and ``test`` rows: ``{"prompt": messages, "chosen": messages, "rejected": messages}``.
    ``prompts``: IFEval's rows, ``{"key": int, "prompt": str, "instruction_id_list": [str], "kwargs": [dict]}``.
    """

    train: list[Row]
    test: list[Row]
    prompts: list[Row]


@dataclass(frozen=True, slots=True)
class Task:
    """A request about a topic, and what the answer has to obey."""

    topic: Topic
    instructions: list[Instruction]
    prompt: str


def generate(pairs: int, seed: int) -> Demo:
    """``pairs`` training pairs and the held-out splits: a pure function of its arguments, in every process."""
    rng = Random(f"demo {seed}")
    seen: set[str] = set()
    held_out = tasks(rng, seen, held_out=True)
    prompts = [ifeval_row(key, next(held_out)) for key in range(PROMPTS)]
    test = [pair_row(next(held_out), rng) for _ in range(TEST_PAIRS)]
    trained = tasks(rng, seen, held_out=False)
    return Demo([pair_row(next(trained), rng) for _ in range(pairs)], test, prompts)


def texts(demo: Demo) -> Iterator[str]:
    """Everything that training renders, roles among it: what a tokenizer may learn from."""
    for row in demo.train:
        for side in row.values():
            yield from (text for message in side for text in (message["role"], message["content"]))


def tasks(rng: Random, seen: set[str], held_out: bool) -> Iterator[Task]:
    """Tasks without end, no prompt twice."""
    while True:
        topic, request = choose_topic(rng, held_out)
        two = rng.random() < (TWO_HELD_OUT if held_out else TWO_TRAINED)
        instructions = several(topic.subject, 1 + two, rng, held_out)
        prompt = " ".join([request, *(instruction.request for instruction in instructions)])
        if prompt not in seen:
            seen.add(prompt)
            yield Task(topic, instructions, prompt)


def choose_topic(rng: Random, held_out: bool) -> tuple[Topic, str]:
    """A topic and a request about it; every fourth combination of the two is held out of training."""
    subject = rng.choice(SUBJECTS)
    places = [
        (noun, request)
        for noun in range(len(subject.nouns))
        for request in range(len(subject.requests))
        if ((noun + request) % HELD_OUT_EVERY == 0) == held_out
    ]
    noun, request = rng.choice(places)
    topic = Topic(subject, subject.nouns[noun])
    return topic, topic.put_into(subject.requests[request])


def pair_row(task: Task, rng: Random) -> Row:
    """Both answers to a task; most rejected ones say the same as the chosen as far as their style allows."""
    obeying, breaking = styles(task.instructions, rng)
    content = rng.random()
    other = content if rng.random() < SAME_CONTENT else rng.random()
    chosen = write(obeying, task.topic, Random(content))
    rejected = write(breaking, task.topic, Random(other))
    return {
        "prompt": [{"role": "user", "content": task.prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def ifeval_row(key: int, task: Task) -> Row:
    """A task as IFEval's files have it."""
    return {
        "key": key,
        "prompt": task.prompt,
        "instruction_id_list": [instruction.id for instruction in task.instructions],
        "kwargs": [instruction.kwargs for instruction in task.instructions],
    }
