"""Stage ``acquire``: reads preference pairs, checks and splits them, and writes one Arrow file per split."""

from bisect import insort
from collections.abc import Iterable, Iterator
from pathlib import Path

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft
from dpo_core.data import report
from dpo_core.data.dedup import DigestSet
from dpo_core.data.preference import Preference, read_pairs, write_pairs
from dpo_core.data.readers.dataset_reader import DatasetSplits, held_out_count, open_source
from dpo_core.data.row_outcome import Dropped, Outcome
from dpo_core.data.sources import pin_source, source_digest, source_identity
from dpo_core.data.statistics import OVERLAP, SplitStatistics
from dpo_core.records import PairSet
from dpo_core.stages.acquire import AcquireRequest
from dpo_core.system.progress import Progress

__all__ = ["pin_source", "run", "source_digest", "source_identity"]


def run(request: AcquireRequest, draft: Draft) -> None:
    """Read, check and split the pairs; publish a PairSet, and its report in the same directory.

    Raises DataError when too many rows are malformed, or a split has no pair left.
    """
    statistics = SplitStatistics(), SplitStatistics()
    paths = draft.path / "train.arrow", draft.path / "test.arrow"
    write_splits(request, open_source(request), statistics, paths)
    for name, statistic in zip(("train", "test"), statistics, strict=True):
        statistic.check(name, request.data.max_dropped_fraction)
    train, test = (statistic.report() for statistic in statistics)
    report.write_report(draft.path, request.source, {"train": train, "test": test})
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


def write_splits(
    request: AcquireRequest,
    splits: DatasetSplits,
    statistics: tuple[SplitStatistics, SplitStatistics],
    paths: tuple[Path, Path],
) -> None:
    """Write both splits; no prompt is in both. Without test rows the split is made by prompt."""
    train, test = statistics
    if splits.test is None:
        split_by_prompt(request, splits.train, statistics, paths)
        return
    keys = DigestSet()
    write_pairs(paths[1], test.count_lengths(collect_keys(test.usable_pairs(splits.test), keys)))
    write_pairs(paths[0], train.count_lengths(train.usable_pairs(drop_overlapping(splits.train, keys))))


def split_by_prompt(
    request: AcquireRequest,
    rows: Iterable[Outcome],
    statistics: tuple[SplitStatistics, SplitStatistics],
    paths: tuple[Path, Path],
) -> None:
    """Split one source by prompt: the pairs whose prompts have the smallest keys are held out."""
    train, test = statistics
    all_pairs = paths[0].with_name("whole.arrow")
    smallest = SmallestKeys(request.data.test_size)
    write_pairs(all_pairs, smallest.count_keys(train.usable_pairs(rows)))
    train.check_malformed("dataset", request.data.max_dropped_fraction)
    keys = smallest.covering(held_out_count(train.kept, request.data.test_size))
    progress = Progress("splitting", 2 * train.kept, "pairs")
    readers = [progress.track(read_pairs(all_pairs)) for _ in paths]
    write_pairs(paths[1], test.count_lengths(pair for pair in readers[1] if prompt_key(pair) in keys))
    write_pairs(paths[0], train.count_lengths(pair for pair in readers[0] if prompt_key(pair) not in keys))
    test.read = test.kept = sum(keys.values())
    train.read, train.kept = train.read - test.kept, train.kept - test.kept
    all_pairs.unlink()


class SmallestKeys:
    """The ``max_count`` smallest prompt keys of a stream of pairs, and the number of pairs with each."""

    def __init__(self, max_count: int) -> None:
        self.max_count, self.ordered = max_count, list[int]()
        self.counts: dict[int, int] = {}

    def count_keys(self, pairs: Iterable[Preference]) -> Iterator[Preference]:
        """Pass the pairs on, and count the keys of their prompts."""
        for pair in pairs:
            self.add(prompt_key(pair))
            yield pair

    def add(self, key: int) -> None:
        """Count a key if it is among the smallest. A larger key can be forgotten safely: it never comes back in."""
        if key in self.counts:
            self.counts[key] += 1
        elif len(self.ordered) < self.max_count or key < self.ordered[-1]:
            insort(self.ordered, key)
            self.counts[key] = 1
            if len(self.ordered) > self.max_count:
                del self.counts[self.ordered.pop()]

    def covering(self, pairs: int) -> dict[int, int]:
        """The smallest keys that together have at least ``pairs`` pairs, with the number of pairs of each."""
        kept: dict[int, int] = {}
        covered = 0
        for key in self.ordered:
            if covered >= pairs:
                break
            kept[key] = self.counts[key]
            covered += kept[key]
        return kept


def prompt_key(pair: Preference) -> int:
    """The fingerprint of a pair's prompt as a 64-bit number."""
    return int(pair.prompt_key, 16)


def collect_keys(pairs: Iterable[Preference], keys: DigestSet) -> Iterator[Preference]:
    """Pass the pairs on, and add the keys of their prompts to ``keys``."""
    for pair in pairs:
        keys.add(prompt_key(pair))
        yield pair


def drop_overlapping(rows: Iterable[Outcome], held_out: DigestSet) -> Iterator[Outcome]:
    """Pass the rows on; drop those whose prompt is in the test split."""
    for row in rows:
        overlaps = isinstance(row, Preference) and prompt_key(row) in held_out
        yield Dropped(OVERLAP, "") if overlaps else row
