"""``helpsteer2``: NVIDIA's HelpSteer2 (arXiv 2406.08673); the best rated response is chosen, the worst rejected."""

import re

from dpo_core.data.conversation import labelled, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.preference import Message
from dpo_core.data.row_outcome import Dropped, Malformed, Outcome, Row

TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


@tolerant
def convert(row: Row, where: str) -> Outcome:
    """The most helpful response to a prompt is chosen, the least helpful rejected; equal ratings are a tie."""
    prompt, ratings, responses = row["prompt"], row["helpfulness"], row["response"]
    if not isinstance(prompt, str) or not all(isinstance(rating, int | float) for rating in ratings):
        raise Malformed("no rating", "a prompt is a text, and each helpfulness a number")
    if len(responses) < 2:
        return Dropped("single response", where)
    worst, best = min(ratings), max(ratings)
    if worst == best:
        return Dropped("tie", where)
    return labelled(parse_turns(prompt), responses[ratings.index(best)], responses[ratings.index(worst)], where)


def parse_turns(prompt: str) -> list[Message]:
    """A prompt as messages: ``<extra_id_1>`` and a speaker begin each turn after the user's first."""
    first, *rest = TURN.split(prompt)
    speakers, contents = ["User", *rest[::2]], [first, *rest[1::2]]
    return [
        {"role": speaker.lower(), "content": content.rstrip("\n")}
        for speaker, content in zip(speakers, contents, strict=True)
    ]


DATASET = HubDataset(
    "nvidia/HelpSteer2",
    convert,
    splits=(("train", "validation"),),
    files=("README.md", "train.jsonl.gz", "validation.jsonl.gz"),
    group_by="prompt",
)
