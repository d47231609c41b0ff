"""What a row of a dataset is: a usable pair, or a reason why not."""

from dataclasses import dataclass

from dpo_core.data.preference import Message, Preference


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not trained on: its cause (as counted in the report), and which row it was."""

    cause: str
    detail: str


def checked(pair: Preference, where: str) -> Preference | Dropped:
    """The pair, unless it has nothing to teach: an empty reply, equal sides, no user before the answer."""
    sides = (pair.sides.chosen, pair.sides.rejected)
    if not pair.prompt or any(side[-1]["role"] != "assistant" for side in sides):
        return Dropped("malformed", f"{where}: a prompt and assistants' replies are needed")
    if any(not said(message) for side in sides for message in side[-1:]):
        return Dropped("empty reply", where)
    if pair.sides.chosen == pair.sides.rejected:
        return Dropped("equal sides", where)
    if not encodable(pair):
        return Dropped("malformed", f"{where}: a lone surrogate is not text")
    return pair


def said(message: Message) -> bool:
    """Whether a message says anything."""
    return bool(message["content"].strip())


def encodable(pair: Preference) -> bool:
    """Whether every text can be written as UTF-8."""
    texts = [message["content"] for part in (pair.prompt, pair.sides.chosen, pair.sides.rejected) for message in part]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
