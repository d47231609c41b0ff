"""What became of the rows of one split, counted by cause, with the first row of each to show."""

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
    """Counts the rows of one split. Its memory grows by some bytes a pair: digests, no texts."""

    def __init__(self) -> None:
        self.read, self.kept = 0, 0
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.lengths = LengthCounts("characters")
        self.seen = DigestSet()

    @property
    def malformed(self) -> int:
        """How many rows broke their schema."""
        return sum(count for cause, count in self.dropped.items() if cause.startswith(MALFORMED))

    def sift(self, rows: Iterable[Outcome]) -> Iterator[Preference]:
        """The usable pairs, everything else counted by cause."""
        for row in rows:
            self.read += 1
            verdict = row if isinstance(row, Dropped) else self.repeated(row)
            if isinstance(verdict, Dropped):
                self.drop(verdict)
            else:
                self.kept += 1
                yield verdict

    def repeated(self, pair: Preference) -> Outcome:
        """The pair, unless the very same one came before."""
        digest = int(fingerprint.of_value([pair.prompt, pair.sides.chosen, pair.sides.rejected]), 16)
        return pair if self.seen.add(digest) else Dropped(DUPLICATE, "")

    def drop(self, dropped: Dropped) -> None:
        """Count a cause; remember where it was met first."""
        self.dropped[dropped.cause] += 1
        if dropped.detail:
            self.examples.setdefault(dropped.cause, dropped.detail)

    def measured(self, pairs: Iterable[Preference]) -> Iterator[Preference]:
        """The pairs, their lengths counted."""
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
            **self.lengths.told(),
        )

    def check(self, split: str, most: float) -> None:
        """Raises DataError when a split is mostly malformed, or empty."""
        self.check_malformed(split, most)
        if not self.kept:
            causes = ", ".join(f"{count} {cause}" for cause, count in self.dropped.items()) or "nothing was there"
            raise DataError(
                f"No {split} pair is left of {self.read} rows ({causes}).",
                "Training and testing need pairs (where no test split is given, a tenth of the pairs is held out).",
                "Check the dataset, or give test_path.",
            )

    def check_malformed(self, split: str, most: float) -> None:
        """Raises DataError, showing the first of each kind, when too many rows are malformed."""
        if self.malformed > most * self.read:
            shown = "; ".join(
                f"{self.dropped[cause]} {cause.removeprefix(f'{MALFORMED}: ')} (as {example})"
                for cause, example in self.examples.items()
                if cause.startswith(MALFORMED)
            )
            raise DataError(
                f"{self.malformed} of {self.read} {split} rows are malformed: {shown}.",
                f"At most {most:.0%} may be (max_dropped_fraction).",
                "Mend the rows, or raise max_dropped_fraction.",
            )
