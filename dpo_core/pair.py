"""The one shape that runs from text to gradient: a chosen and a rejected side."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Pair(Generic[T]):
    """Two sides of one preference. Position never carries meaning; the names do."""

    chosen: T
    rejected: T

    def map(self, function: Callable[[T], U]) -> "Pair[U]":
        """Apply one function to both sides."""
        return Pair(function(self.chosen), function(self.rejected))

    def swap(self) -> "Pair[T]":
        """The opposite preference."""
        return Pair(self.rejected, self.chosen)
