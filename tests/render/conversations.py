"""Conversations for property tests: roles, turns, unicode, white space, emptiness, and text that looks like markers."""

from hypothesis import strategies as st

from dpo_core.data.preference import Message
from tests.render.tokenizers import MARKERS, TAGS

FORGED = [*MARKERS, *TAGS, "\n\nUser:", "\n\nAssistant:", "<tool_response>", "</tool_response>", "<0x0A>", "▁", "[INST"]
SPACES = st.text(alphabet=" \n\t\r\u00a0\u2003", max_size=3)
WORDS = st.one_of(
    st.text(max_size=8), st.sampled_from(["he said", "A.", "naïve café", "漢字", "👩‍👩‍👧", "e\u0301", "\x00"])
)


def texts(forged: bool = True) -> st.SearchStrategy[str]:
    """Messages' texts; without ``forged`` none holds anything that looks like a marker or tag."""
    parts = [SPACES, WORDS, *([st.sampled_from(FORGED)] if forged else [])]
    joined = st.lists(st.one_of(*parts), max_size=4).map("".join)
    return joined if forged else joined.filter(plain)


def plain(text: str) -> bool:
    """Whether nothing in a text looks like a marker or tag."""
    return not any(mark in text for mark in FORGED)


def talks(
    contents: st.SearchStrategy[str], system: bool | None = None, turns: int = 3
) -> st.SearchStrategy[list[Message]]:
    """Conversations that end with an answer; ``system``: with a system message, without one, or either (None)."""

    def conversation(has_system: bool, drawn: list[str]) -> list[Message]:
        roles = [*(["system"] if has_system else []), *["user", "assistant"] * turns]
        # From the end, so that the system message stays only where the whole conversation is there.
        return [Message(role=role, content=text) for role, text in zip(roles, drawn, strict=False)]

    def even(pair: tuple[bool, int, list[str]]) -> list[Message]:
        has_system, rounds, drawn = pair
        return conversation(has_system, drawn[: int(has_system) + 2 * rounds])

    whether = st.booleans() if system is None else st.just(system)
    many = st.lists(contents, min_size=2 * turns + 1, max_size=2 * turns + 1)
    return st.tuples(whether, st.integers(1, turns), many).map(even)
