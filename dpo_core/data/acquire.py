"""The first stage: preferences from wherever they are to one checked, split, content-addressed Arrow file a split."""

from bisect import insort
from collections.abc import Iterable, Iterator
from pathlib import Path

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft
from dpo_core.data import report
from dpo_core.data.dedup import DigestSet
from dpo_core.data.preference import Preference, read_pairs, write_pairs
from dpo_core.data.readers.dataset_reader import DatasetSplits, held_out_of, open_source
from dpo_core.data.row_outcome import Dropped, Outcome
from dpo_core.data.sources import content, digest, pin
from dpo_core.data.statistics import OVERLAP, SplitStatistics
from dpo_core.records import PairSet
from dpo_core.stages.acquire import AcquireRequest
from dpo_core.system.progress import Progress

__all__ = ["content", "digest", "pin", "run"]


def run(request: AcquireRequest, draft: Draft) -> None:
    """Read, sift and split the pairs; publish a PairSet with its report beside.

    Raises DataError when too many rows are malformed or none is left.
    """
    tallies = SplitStatistics(), SplitStatistics()
    paths = draft.path / "train.arrow", draft.path / "test.arrow"
    split(request, open_source(request), tallies, paths)
    for name, tally in zip(("train", "test"), tallies, strict=True):
        tally.check(name, request.data.max_dropped_fraction)
    train, test = (tally.report() for tally in tallies)
    report.write(draft.path, request.source, {"train": train, "test": test})
    draft.publish(
        PairSet(
            path=draft.final,
            fingerprint=fingerprint.of_files(list(paths), draft.path),
            dataset=request.data.dataset,
            source=request.source,
            train_pairs=train.kept,
            test_pairs=test.kept,
            train_report=train,
            test_report=test,
        )
    )


def split(
    request: AcquireRequest,
    opened: DatasetSplits,
    tallies: tuple[SplitStatistics, SplitStatistics],
    paths: tuple[Path, Path],
) -> None:
    """Write both splits, with no prompt in both."""
    train, test = tallies
    if opened.test is None:
        share_out(request, opened.train, tallies, paths)
        return
    keys = DigestSet()
    write_pairs(paths[1], test.measured(noted(test.sift(opened.test), keys)))
    write_pairs(paths[0], train.measured(train.sift(without(opened.train, keys))))


def share_out(
    request: AcquireRequest,
    rows: Iterable[Outcome],
    tallies: tuple[SplitStatistics, SplitStatistics],
    paths: tuple[Path, Path],
) -> None:
    """Split one source by prompt: the prompts with the smallest keys are held out."""
    train, test = tallies
    whole = paths[0].with_name("whole.arrow")
    smallest = Smallest(request.data.test_size)
    write_pairs(whole, smallest.noted(train.sift(rows)))
    train.check_malformed("dataset", request.data.max_dropped_fraction)
    keys = smallest.reaching(held_out_of(train.kept, request.data.test_size))
    progress = Progress("splitting", 2 * train.kept, "pairs")
    again = [progress.track(read_pairs(whole)) for _ in paths]
    write_pairs(paths[1], test.measured(pair for pair in again[1] if key_of(pair) in keys))
    write_pairs(paths[0], train.measured(pair for pair in again[0] if key_of(pair) not in keys))
    test.read = test.kept = sum(keys.values())
    train.read, train.kept = train.read - test.kept, train.kept - test.kept
    whole.unlink()


class Smallest:
    """The smallest keys of what passes by, so many at most, and how often each came."""

    def __init__(self, most: int) -> None:
        self.most, self.ordered = most, list[int]()
        self.counts: dict[int, int] = {}

    def noted(self, pairs: Iterable[Preference]) -> Iterator[Preference]:
        """The pairs, the keys of their prompts noted."""
        for pair in pairs:
            self.note(key_of(pair))
            yield pair

    def note(self, key: int) -> None:
        """Count a key if it is among the smallest; one that is not any more never was needed."""
        if key in self.counts:
            self.counts[key] += 1
        elif len(self.ordered) < self.most or key < self.ordered[-1]:
            insort(self.ordered, key)
            self.counts[key] = 1
            if len(self.ordered) > self.most:
                del self.counts[self.ordered.pop()]

    def reaching(self, wanted: int) -> dict[int, int]:
        """As many of the smallest keys as it takes for ``wanted`` pairs, with their counts."""
        taken: dict[int, int] = {}
        reached = 0
        for key in self.ordered:
            if reached >= wanted:
                break
            taken[key] = self.counts[key]
            reached += taken[key]
        return taken


def key_of(pair: Preference) -> int:
    """The key of a pair's prompt as a number of 64 bits."""
    return int(pair.prompt_key, 16)


def noted(pairs: Iterable[Preference], keys: DigestSet) -> Iterator[Preference]:
    """The pairs, the keys of their prompts entered."""
    for pair in pairs:
        keys.add(key_of(pair))
        yield pair


def without(rows: Iterable[Outcome], held_out: DigestSet) -> Iterator[Outcome]:
    """Rows whose prompt is held out are dropped from training."""
    for row in rows:
        taken = isinstance(row, Preference) and key_of(row) in held_out
        yield Dropped(OVERLAP, "") if taken else row
