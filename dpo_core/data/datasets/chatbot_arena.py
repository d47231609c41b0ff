"""``arena``: human votes between two models' conversations, ``lmarena-ai/arena-human-preference-140k``."""

from typing import Any

from dpo_core.data.conversation import convert_diverging, parse_messages, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.preference import Message
from dpo_core.data.row_outcome import Dropped, Malformed, Outcome, Row
from dpo_core.pair import Pair

WINNERS = ("model_a", "model_b")
TIES = ("tie", "both_bad", "tie (bothbad)")
NOT_TEXT = object()


@tolerant
def convert(row: Row, where: str) -> Outcome:
    """The winner's conversation is chosen; the prompt is what both begin with. Ties are dropped."""
    if row["winner"] in TIES:
        return Dropped("tie", where)
    if row["winner"] not in WINNERS:
        raise Malformed("unknown winner", f"winner {row['winner']!r:.40} is none of {', '.join(WINNERS + TIES)}")
    sides = Pair(text_messages(row["conversation_a"]), text_messages(row["conversation_b"]))
    if not sides.chosen or not sides.rejected:
        return Dropped("not only text", where)
    return convert_diverging(sides if row["winner"] == "model_a" else sides.swap(), where)


def text_messages(conversation: Any) -> list[Message]:
    """The messages of a conversation whose contents are lists of parts; empty where a part is not text."""
    items = conversation if isinstance(conversation, list) else [conversation]
    joined = [
        item | {"content": joined_text(item.get("content"))} if isinstance(item, dict) else item for item in items
    ]
    if any(isinstance(item, dict) and item["content"] is NOT_TEXT for item in joined):
        return []
    return parse_messages(joined, "user")


def joined_text(content: Any) -> Any:
    """The parts' texts joined by spaces, NOT_TEXT where one has none; a content that is not a list unchanged."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return NOT_TEXT
    return " ".join(part["text"] for part in content)


DATASET = HubDataset(
    "lmarena-ai/arena-human-preference-140k", convert, schemas=(("conversation_a", "conversation_b", "winner"),)
)
