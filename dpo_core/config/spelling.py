"""Spelling suggestions for a name that does not exist."""

import difflib
from collections.abc import Iterable
from pathlib import Path

LISTED = 8


def close_matches(word: str, names: Iterable[str], most: int = 1, cutoff: float = 0.5) -> list[str]:
    """At most ``most`` names that are spelled nearly as ``word``, whatever its case, the nearest first."""
    by_folded = {name.lower(): name for name in names}
    return [by_folded[match] for match in difflib.get_close_matches(word.lower(), by_folded, most, cutoff)]


def did_you_mean(
    word: str, names: Iterable[str], otherwise: str = "Check the name.", most: int = 1, cutoff: float = 0.5
) -> str:
    """A remedy: the nearest names, or ``otherwise`` where none is near."""
    matches = close_matches(word, names, most, cutoff)
    return f"Did you mean {' or '.join(matches)}?" if matches else otherwise


def did_you_mean_or_list(word: str, names: Iterable[str], noun: str) -> str:
    """A remedy: the nearest names, or the first of all that exist. ``noun`` is their plural, capitalised."""
    every = list(names)
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    listed = f"{noun} are {', '.join(every[:LISTED])}{more}." if every else f"There are no {noun.lower()} yet."
    return did_you_mean(word, every, listed, most=3)


def nearest_file(path: Path) -> str:
    """A remedy for a missing recipe: a TOML file beside it with a similar name."""
    matches = close_matches(path.name, [found.name for found in path.parent.glob("*.toml")], cutoff=0.6)
    return f"Did you mean {path.parent / matches[0]}?" if matches else "Check the path."
