"""``hhh``: Anthropic's helpful and harmless preferences (arXiv 2204.05862), ``Anthropic/hh-rlhf`` on the hub."""

import re
from collections.abc import Iterator
from typing import Any

from dpo_core.data.preference import Message, Preference
from dpo_core.data.rows import Dropped, checked
from dpo_core.pair import Pair

HUB_ID = "Anthropic/hh-rlhf"
SHUFFLE_SEED = 0

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def read(source: str, split: str, limit: int | None) -> Iterator[Preference | Dropped]:
    """The rows of a split, shuffled with the reference's seed. source: ``Anthropic/hh-rlhf@<commit>``."""
    # Lazy: datasets takes a second to import, which only hub data need.
    from datasets import load_dataset

    name, _, commit = source.partition("@")
    rows: Any = load_dataset(name, revision=commit, split=split).shuffle(seed=SHUFFLE_SEED)
    for index, row in enumerate(rows):
        if limit is not None and index == limit:
            return
        yield from_transcripts(row["chosen"], row["rejected"], f"{name} {split} row {index}")


def from_transcripts(chosen: Any, rejected: Any, where: str) -> Preference | Dropped:
    """Two transcripts that share every message but a last, differing assistant one."""
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return Dropped("malformed", f"{where}: a transcript is a text")
    sides = Pair(transcript(chosen), transcript(rejected))
    if not sides.chosen or not sides.rejected:
        return Dropped("malformed", f"{where}: no Human: or Assistant: turn at the start")
    if sides.chosen[:-1] != sides.rejected[:-1]:
        return Dropped("different prompts", where)
    return checked(Preference(sides.chosen[:-1], sides.map(lambda messages: messages[-1:])), where)


def transcript(text: str) -> list[Message]:
    """The messages of a transcript; only a speaker after a blank line begins a turn. Empty if it begins otherwise."""
    before, *parts = SPEAKER.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip():
        return []
    speakers, contents = parts[::2], parts[1::2]
    return [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(speakers, contents, strict=True)
    ]
