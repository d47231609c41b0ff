"""How long prompts, chosen and rejected sides are: counted as they come, whatever their number."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import TypedDict

from dpo_core.records import Lengths

PARTS = ("prompt", "chosen", "rejected")
PERCENTS = (5, 25, 50, 75, 95, 99, 100)
# Why a pair is dropped for its length.
OVER_LENGTH, NO_ROOM = "over max_length", "no room for the prompt"
NOT_WITHIN, EQUAL_WITHIN = "no trained token within max_length", "equal sides after truncation"
LENGTH_CAUSES = (OVER_LENGTH, NO_ROOM, NOT_WITHIN, EQUAL_WITHIN)
# What of a kept pair is cut.
OLDER_TURNS, LAST_TEXT = "older turns of the prompt", "text of the prompt's last turn"
CHOSEN, REJECTED = "end of the chosen response", "end of the rejected response"
CUTS = (OLDER_TURNS, LAST_TEXT, CHOSEN, REJECTED)


class LengthsReport(TypedDict):
    """What a DataReport says of lengths."""

    unit: str
    lengths: dict[str, Lengths]
    longer_chosen: float | None


class LengthCounts:
    """Lengths of the parts of pairs. ``unit``: what is counted, characters or tokens."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.counts: dict[str, Counter[int]] = {part: Counter() for part in PARTS}
        self.chosen_longer, self.unequal = 0, 0

    def add(self, prompt: Iterable[int], chosen: list[int], rejected: list[int]) -> None:
        """The lengths of some pairs: three columns of numbers."""
        for part, column in zip(PARTS, (prompt, chosen, rejected), strict=True):
            self.counts[part].update(column)
        self.chosen_longer += sum(one > other for one, other in zip(chosen, rejected, strict=True))
        self.unequal += sum(one != other for one, other in zip(chosen, rejected, strict=True))

    def told(self) -> LengthsReport:
        """The counts as a report has them."""
        lengths = {part: summary(counts) for part, counts in self.counts.items() if counts}
        share = self.chosen_longer / self.unequal if self.unequal else None
        return LengthsReport(unit=self.unit, lengths=lengths, longer_chosen=share)


def summary(counts: Counter[int]) -> Lengths:
    """Mean, quantiles and doubling bins of counted lengths, of which there is at least one."""
    total = counts.total()
    ordered = sorted(counts)
    reached = list(accumulate(counts[length] for length in ordered))
    quantiles = {str(percent): ordered[bisect_left(reached, percent * total / 100)] for percent in PERCENTS}
    bins = [0] * (max(ordered).bit_length() + 1)
    for length, count in counts.items():
        bins[length.bit_length()] += count
    mean = sum(length * count for length, count in counts.items()) / total
    return Lengths(mean=round(mean, 2), quantiles=quantiles, histogram=tuple(bins))
