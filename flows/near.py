"""The nearest right spelling of a name that is not there."""

import difflib
from collections.abc import Sequence

SHOWN = 8


def near(word: str, names: Sequence[str], of: str) -> str:
    """A remedy: the nearest names, else those that there are."""
    found = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if found:
        return f"Did you mean {' or '.join(found)}?"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{of} are {', '.join(names[:SHOWN])}{more}." if names else f"There are no {of.lower()} yet."
