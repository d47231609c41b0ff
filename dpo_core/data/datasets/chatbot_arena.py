"""``arena``: human votes between two models' conversations, ``lmarena-ai/arena-human-preference-140k``."""

from typing import Any

from dpo_core.data.conversation import diverging, messages, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.preference import Message
from dpo_core.data.row_outcome import Dropped, Malformed, Outcome, Row
from dpo_core.pair import Pair

WINNERS = ("model_a", "model_b")
TIES = ("tie", "both_bad", "tie (bothbad)")
PICTURE = object()


@tolerant
def convert(row: Row, where: str) -> Outcome:
    """The winner's conversation against the other's; the prompt is what they share, and ties are dropped."""
    if row["winner"] in TIES:
        return Dropped("tie", where)
    if row["winner"] not in WINNERS:
        raise Malformed("unknown winner", f"winner {row['winner']!r:.40} is none of {', '.join(WINNERS + TIES)}")
    told = Pair(spoken(row["conversation_a"]), spoken(row["conversation_b"]))
    if not told.chosen or not told.rejected:
        return Dropped("not only text", where)
    return diverging(told if row["winner"] == "model_a" else told.swap(), where)


def spoken(conversation: Any) -> list[Message]:
    """The messages of a conversation whose contents are lists of parts; empty where a part is a picture or a file."""
    items = conversation if isinstance(conversation, list) else [conversation]
    told = [item | {"content": text(item.get("content"))} if isinstance(item, dict) else item for item in items]
    return [] if any(isinstance(item, dict) and item["content"] is PICTURE for item in told) else messages(told, "user")


def text(content: Any) -> Any:
    """The parts' texts together, PICTURE where one has none; anything else as it is."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return PICTURE
    return " ".join(part["text"] for part in content)


DATASET = HubDataset(
    "lmarena-ai/arena-human-preference-140k", convert, schemas=(("conversation_a", "conversation_b", "winner"),)
)
