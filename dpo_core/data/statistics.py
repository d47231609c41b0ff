"""Row statistics of one split: rows read, kept and dropped by cause, the first row of each cause, lengths."""

from collections import Counter
from collections.abc import Iterable, Iterator

from dpo_core.cache import fingerprint
from dpo_core.data.dedup import DigestSet
from dpo_core.data.lengths import LengthCounts
from dpo_core.data.preference import Preference
from dpo_core.data.row_outcome import MALFORMED, Dropped, Outcome
from dpo_core.errors import DataError
from dpo_core.records import DataReport

DUPLICATE, OVERLAP = "duplicate", "prompt is in the test split"


class SplitStatistics:
    """Counts the rows of one split. Memory grows by at most 32 bytes per pair: it keeps digests, no texts."""

    def __init__(self) -> None:
        self.read, self.kept = 0, 0
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.lengths = LengthCounts("characters")
        self.digests = DigestSet()

    @property
    def malformed(self) -> int:
        """Number of rows that break the schema."""
        return sum(count for cause, count in self.dropped.items() if cause.startswith(MALFORMED))

    def usable_pairs(self, rows: Iterable[Outcome]) -> Iterator[Preference]:
        """Yield the usable pairs without duplicates; count every dropped row by cause."""
        for row in rows:
            self.read += 1
            outcome = row if isinstance(row, Dropped) else self.drop_duplicate(row)
            if isinstance(outcome, Dropped):
                self.count_dropped(outcome)
            else:
                self.kept += 1
                yield outcome

    def drop_duplicate(self, pair: Preference) -> Outcome:
        """The pair, or Dropped when an equal pair came before."""
        digest = int(fingerprint.of_value([pair.prompt, pair.sides.chosen, pair.sides.rejected]), 16)
        return pair if self.digests.add(digest) else Dropped(DUPLICATE, "")

    def count_dropped(self, dropped: Dropped) -> None:
        """Count a dropped row, and keep the first detail of each cause as its example."""
        self.dropped[dropped.cause] += 1
        if dropped.detail:
            self.examples.setdefault(dropped.cause, dropped.detail)

    def count_lengths(self, pairs: Iterable[Preference]) -> Iterator[Preference]:
        """Pass the pairs on, and count their lengths in characters."""
        for pair in pairs:
            parts = (pair.prompt, pair.sides.chosen, pair.sides.rejected)
            prompt, chosen, rejected = (sum(len(message["content"]) for message in part) for part in parts)
            self.lengths.add([prompt], [chosen], [rejected])
            yield pair

    def report(self) -> DataReport:
        """The counts as a record."""
        return DataReport(
            rows_read=self.read,
            kept=self.kept,
            dropped=dict(sorted(self.dropped.items())),
            examples=dict(sorted(self.examples.items())),
            **self.lengths.report_fields(),
        )

    def check(self, split: str, max_dropped_fraction: float) -> None:
        """Raises DataError when too many rows of the split are malformed, or no pair is left."""
        self.check_malformed(split, max_dropped_fraction)
        if not self.kept:
            causes = ", ".join(f"{count} {cause}" for cause, count in self.dropped.items()) or "no rows"
            raise DataError(
                f"No {split} pair is left of {self.read} rows ({causes}).",
                "Each split needs at least one pair (without a test split, a tenth of the pairs is held out).",
                "Check the dataset, or give test_path.",
            )

    def check_malformed(self, split: str, max_dropped_fraction: float) -> None:
        """Raises DataError with the first row of each kind when more than the given fraction is malformed."""
        if self.malformed > max_dropped_fraction * self.read:
            kinds = "; ".join(
                f"{self.dropped[cause]} {cause.removeprefix(f'{MALFORMED}: ')} (as {example})"
                for cause, example in self.examples.items()
                if cause.startswith(MALFORMED)
            )
            raise DataError(
                f"{self.malformed} of {self.read} {split} rows are malformed: {kinds}.",
                f"At most {max_dropped_fraction:.0%} may be malformed (max_dropped_fraction).",
                "Fix the rows, or raise max_dropped_fraction.",
            )
