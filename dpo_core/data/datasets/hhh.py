"""``hhh``: Anthropic's helpful and harmless preferences (arXiv 2204.05862), two transcripts a row."""

import re

from dpo_core.data.conversation import convert_conversations, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.preference import Message
from dpo_core.data.row_outcome import Malformed, Outcome, Row
from dpo_core.pair import Pair

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


@tolerant
def convert(row: Row, where: str) -> Outcome:
    """Two transcripts that share every message but a last, differing assistant one."""
    return convert_conversations(Pair(transcript(row["chosen"]), transcript(row["rejected"])), where)


def transcript(text: object) -> list[Message]:
    """The messages of a transcript; only a speaker after a blank line begins a turn.

    Raises Malformed for what is not a transcript.
    """
    if not isinstance(text, str):
        raise Malformed("not a transcript", f"a transcript is a text, not {text!r:.60}")
    before, *parts = SPEAKER.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise Malformed("not a transcript", f"no Human: or Assistant: turn at the start of {text!r:.60}")
    speakers, contents = parts[::2], parts[1::2]
    return [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(speakers, contents, strict=True)
    ]


DATASET = HubDataset(
    "Anthropic/hh-rlhf",
    convert,
    splits=(("train", "test"),),
    files=("README.md", "*/train.jsonl.gz", "*/test.jsonl.gz"),
)
