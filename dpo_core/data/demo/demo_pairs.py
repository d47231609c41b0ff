"""Demo dataset: generated preference pairs for following instructions that a program can verify.

Every prompt asks for a short text and carries one or two instructions of IFEval's official types (arXiv 2311.07911).
The chosen response obeys all of them; the rejected response is as fluent and on topic, and breaks at least one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from dpo_core.data.demo.demo_instructions import Instruction, draw_instructions, draw_styles
from dpo_core.data.demo.demo_responses import Topic, write_response
from dpo_core.data.demo.demo_vocabulary import SUBJECTS

Row = dict[str, Any]

TEST_PAIRS, PROMPTS = 240, 240
HELD_OUT_EVERY = 4
# Shares of prompts with two instructions. Training has more of them, because a small model fails at two at once.
TWO_HELD_OUT, TWO_TRAINED = 0.15, 0.35
SAME_CONTENT = 0.9


@dataclass(frozen=True, slots=True)
class Demo:
    """The generated splits; no two share a prompt, and no request of ``test`` or ``prompts`` is in training.

    ``train`` and ``test`` rows: ``{"prompt": messages, "chosen": messages, "rejected": messages}``.
    ``prompts``: IFEval's rows, ``{"key": int, "prompt": str, "instruction_id_list": [str], "kwargs": [dict]}``.
    """

    train: list[Row]
    test: list[Row]
    prompts: list[Row]


@dataclass(frozen=True, slots=True)
class Task:
    """A request about a topic, and the instructions for the response."""

    topic: Topic
    instructions: list[Instruction]
    prompt: str


def generate(pairs: int, seed: int) -> Demo:
    """Generate ``pairs`` training pairs and the held-out splits; equal arguments give equal data in every process."""
    rng = Random(f"demo {seed}")
    seen: set[str] = set()
    held_out = generate_tasks(rng, seen, held_out=True)
    prompts = [ifeval_row(key, next(held_out)) for key in range(PROMPTS)]
    test = [pair_row(next(held_out), rng) for _ in range(TEST_PAIRS)]
    trained = generate_tasks(rng, seen, held_out=False)
    return Demo([pair_row(next(trained), rng) for _ in range(pairs)], test, prompts)


def training_texts(demo: Demo) -> Iterator[str]:
    """Every text and role of the training pairs, for training a tokenizer."""
    for row in demo.train:
        for side in row.values():
            yield from (text for message in side for text in (message["role"], message["content"]))


def generate_tasks(rng: Random, seen: set[str], held_out: bool) -> Iterator[Task]:
    """Generate tasks without end; no prompt occurs twice or is in ``seen``, to which each prompt is added."""
    while True:
        topic, request = choose_topic(rng, held_out)
        has_two = rng.random() < (TWO_HELD_OUT if held_out else TWO_TRAINED)
        instructions = draw_instructions(topic.subject, 1 + has_two, rng, held_out)
        prompt = " ".join([request, *(instruction.request for instruction in instructions)])
        if prompt not in seen:
            seen.add(prompt)
            yield Task(topic, instructions, prompt)


def choose_topic(rng: Random, held_out: bool) -> tuple[Topic, str]:
    """Draw a topic and a request; every HELD_OUT_EVERY-th combination of noun and request is held out."""
    subject = rng.choice(SUBJECTS)
    combinations = [
        (noun, request)
        for noun in range(len(subject.nouns))
        for request in range(len(subject.requests))
        if ((noun + request) % HELD_OUT_EVERY == 0) == held_out
    ]
    noun, request = rng.choice(combinations)
    topic = Topic(subject, subject.nouns[noun])
    return topic, topic.put_into(subject.requests[request])


def pair_row(task: Task, rng: Random) -> Row:
    """A preference row for a task; most rejected responses have the chosen one's content as far as the style allows."""
    obeying, breaking = draw_styles(task.instructions, rng)
    content = rng.random()
    rejected_content = content if rng.random() < SAME_CONTENT else rng.random()
    chosen = write_response(obeying, task.topic, Random(content))
    rejected = write_response(breaking, task.topic, Random(rejected_content))
    return {
        "prompt": [{"role": "user", "content": task.prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def ifeval_row(key: int, task: Task) -> Row:
    """A task as a row in IFEval's schema."""
    return {
        "key": key,
        "prompt": task.prompt,
        "instruction_id_list": [instruction.id for instruction in task.instructions],
        "kwargs": [instruction.kwargs for instruction in task.instructions],
    }
