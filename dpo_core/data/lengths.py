"""Length statistics of prompts, chosen and rejected responses, counted as they stream by."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import TypedDict

from dpo_core.records import Lengths

PARTS = ("prompt", "chosen", "rejected")
PERCENTS = (5, 25, 50, 75, 95, 99, 100)
# Causes for which a pair is dropped for its length.
OVER_LENGTH, NO_ROOM = "over max_length", "no room for the prompt"
NO_TRAINED_TOKEN, EQUAL_AFTER_CUT = "no trained token within max_length", "equal sides after truncation"
LENGTH_CAUSES = (OVER_LENGTH, NO_ROOM, NO_TRAINED_TOKEN, EQUAL_AFTER_CUT)
# Parts of a kept pair that truncation cuts.
OLDER_TURNS, LAST_TEXT = "older turns of the prompt", "text of the prompt's last turn"
CHOSEN, REJECTED = "end of the chosen response", "end of the rejected response"
CUTS = (OLDER_TURNS, LAST_TEXT, CHOSEN, REJECTED)


class LengthsReport(TypedDict):
    """The fields of a DataReport that describe lengths."""

    unit: str
    lengths: dict[str, Lengths]
    longer_chosen: float | None


class LengthCounts:
    """Histogram of the exact lengths of each part. ``unit``: characters or tokens."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.counts: dict[str, Counter[int]] = {part: Counter() for part in PARTS}
        self.chosen_longer, self.unequal = 0, 0

    def add(self, prompt: Iterable[int], chosen: list[int], rejected: list[int]) -> None:
        """Add the lengths of some pairs: one column for each part, all of equal length."""
        for part, column in zip(PARTS, (prompt, chosen, rejected), strict=True):
            self.counts[part].update(column)
        pairs = list(zip(chosen, rejected, strict=True))
        self.chosen_longer += sum(chosen_length > rejected_length for chosen_length, rejected_length in pairs)
        self.unequal += sum(chosen_length != rejected_length for chosen_length, rejected_length in pairs)

    def report_fields(self) -> LengthsReport:
        """The counts summarized for a DataReport; ``longer_chosen`` is None without pairs of unequal lengths."""
        lengths = {part: summarize_lengths(counts) for part, counts in self.counts.items() if counts}
        share = self.chosen_longer / self.unequal if self.unequal else None
        return LengthsReport(unit=self.unit, lengths=lengths, longer_chosen=share)


def summarize_lengths(counts: Counter[int]) -> Lengths:
    """Mean, quantiles and doubling bins of at least one counted length."""
    total = counts.total()
    ordered = sorted(counts)
    cumulative = list(accumulate(counts[length] for length in ordered))
    quantiles = {str(percent): ordered[bisect_left(cumulative, percent * total / 100)] for percent in PERCENTS}
    bins = [0] * (max(ordered).bit_length() + 1)
    for length, count in counts.items():
        bins[length.bit_length()] += count
    mean = sum(length * count for length, count in counts.items()) / total
    return Lengths(mean=round(mean, 2), quantiles=quantiles, histogram=tuple(bins))
