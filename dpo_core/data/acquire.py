"""The first stage: preferences from wherever they are to one checked, split, content-addressed Arrow file a split."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from dpo_core import fingerprint
from dpo_core.data import demo, hhh, jsonl
from dpo_core.data.hub import Wanted, check_reachable
from dpo_core.data.preference import Preference, read_pairs, write_pairs
from dpo_core.data.rows import Dropped
from dpo_core.errors import DataError
from dpo_core.recipe import DataSettings
from dpo_core.records import DataReport, PairSet
from dpo_core.requests import AcquireRequest
from dpo_core.store import Draft

INSTEAD = "dataset=<local file>"
TEST_SHARE = 10
WORST_SHOWN = 3


class Tally:
    """Counts the rows of one split by what became of them, and keeps the first malformed ones to show."""

    def __init__(self) -> None:
        self.read, self.kept = 0, 0
        self.dropped: Counter[str] = Counter()
        self.worst: list[str] = []
        self.seen: set[str] = set()

    def sift(self, rows: Iterable[Preference | Dropped]) -> Iterator[Preference]:
        """The usable pairs, everything else counted by cause."""
        for row in rows:
            self.read += 1
            verdict = row if isinstance(row, Dropped) else self.repeated(row)
            if isinstance(verdict, Dropped):
                self.drop(verdict)
            else:
                self.kept += 1
                yield verdict

    def repeated(self, pair: Preference) -> Preference | Dropped:
        """The pair, unless the very same one came before."""
        key = fingerprint.of_value([pair.prompt, pair.sides.chosen, pair.sides.rejected])
        if key in self.seen:
            return Dropped("duplicate", "")
        self.seen.add(key)
        return pair

    def drop(self, dropped: Dropped) -> None:
        """Count a cause; remember what the first malformed rows were."""
        self.dropped[dropped.cause] += 1
        if dropped.cause == "malformed" and len(self.worst) < WORST_SHOWN:
            self.worst.append(dropped.detail)

    def report(self) -> DataReport:
        """The counts as a record."""
        return DataReport(rows_read=self.read, kept=self.kept, dropped=dict(sorted(self.dropped.items())))


def pin(data: DataSettings) -> str:
    """Where the dataset is, so exactly that its content is meant: demo, a file's path, or a hub id and commit.

    Raises DataError when it cannot be found.
    """
    if data.dataset == "demo":
        return "demo"
    if data.dataset == "hhh":
        return f"{hhh.HUB_ID}@{check_reachable(Wanted('dataset', hhh.HUB_ID, data.dataset_revision, INSTEAD))}"
    path = Path(data.dataset).expanduser()
    if not path.is_file():
        raise DataError(
            f"There is no dataset {data.dataset}.",
            "dataset is hhh, demo or a JSONL file (.jsonl, .jsonl.gz).",
            "Check the name.",
        )
    return str(path.resolve())


def digest(source: str) -> str:
    """What a source's content is known by: a file's digest, or a name that is pinned already."""
    return fingerprint.of_file(Path(source)) if Path(source).is_file() else source


def content(source: str, data: DataSettings) -> dict[str, str]:
    """Digests of the source and of the test file.

    Raises DataError when the test file is missing.
    """
    if data.test_path and not data.test_path.is_file():
        raise DataError(f"There is no dataset file {data.test_path}.", "test_path is a JSONL file.", "Check the path.")
    return {"source": digest(source)} | ({"test": digest(str(data.test_path))} if data.test_path else {})


def run(request: AcquireRequest, draft: Draft) -> None:
    """Read, sift and split the pairs; publish a PairSet.

    Raises DataError when too many rows are malformed or none is left.
    """
    train, test = Tally(), Tally()
    paths = draft.path / "train.arrow", draft.path / "test.arrow"
    split(request, (train, test), paths)
    for name, tally in (("train", train), ("test", test)):
        check(tally, name, request.data.max_dropped_fraction)
    draft.publish(
        PairSet(
            path=draft.final,
            fingerprint=fingerprint.of_files(list(paths), draft.path),
            dataset=request.data.dataset,
            source=request.source,
            train_pairs=train.kept,
            test_pairs=test.kept,
            train_report=train.report(),
            test_report=test.report(),
        )
    )


def split(request: AcquireRequest, tallies: tuple[Tally, Tally], paths: tuple[Path, Path]) -> None:
    """Write both splits, with no prompt in both."""
    train, test = tallies
    held_out = held_out_rows(request)
    if held_out is None:
        share_out(request, tallies, paths)
        return
    keys = set(write_counted(paths[1], test.sift(held_out)))
    write_pairs(paths[0], train.sift(without(training_rows(request), keys)))


def share_out(request: AcquireRequest, tallies: tuple[Tally, Tally], paths: tuple[Path, Path]) -> None:
    """Split one file by prompt: the prompts with the smallest keys are held out."""
    train, test = tallies
    whole = paths[0].with_name("whole.arrow")
    counts = Counter(write_counted(whole, train.sift(training_rows(request))))
    check_malformed(train, "dataset", request.data.max_dropped_fraction)
    wanted = min(request.data.test_size, train.kept // TEST_SHARE)
    keys: set[str] = set()
    for key in sorted(counts):
        if test.kept >= wanted:
            break
        keys.add(key)
        test.kept += counts[key]
    test.read = test.kept
    train.read, train.kept = train.read - test.kept, train.kept - test.kept
    write_pairs(paths[1], (pair for pair in read_pairs(whole) if pair.prompt_key in keys))
    write_pairs(paths[0], (pair for pair in read_pairs(whole) if pair.prompt_key not in keys))
    whole.unlink()


def write_counted(path: Path, pairs: Iterable[Preference]) -> list[str]:
    """Write pairs and return the keys of their prompts, in order."""
    keys: list[str] = []

    def noted() -> Iterator[Preference]:
        for pair in pairs:
            keys.append(pair.prompt_key)
            yield pair

    write_pairs(path, noted())
    return keys


def without(rows: Iterable[Preference | Dropped], held_out: set[str]) -> Iterator[Preference | Dropped]:
    """Rows whose prompt is held out are dropped from training."""
    for row in rows:
        taken = isinstance(row, Preference) and row.prompt_key in held_out
        yield Dropped("prompt is in the test split", "") if taken else row


def training_rows(request: AcquireRequest) -> Iterator[Preference | Dropped]:
    """The source's rows to train on."""
    if request.source == "demo":
        generated = demo.generate(request.data.demo_pairs, request.seed).train
        return (jsonl.convert(row, f"demo:{index}") for index, row in enumerate(generated))
    if request.data.dataset == "hhh":
        return hhh.read(request.source, "train", None)
    return jsonl.read(Path(request.source))


def held_out_rows(request: AcquireRequest) -> Iterator[Preference | Dropped] | None:
    """The source's own test rows; None where the split is ours to make."""
    if request.source == "demo":
        generated = demo.generate(request.data.demo_pairs, request.seed).test
        return (jsonl.convert(row, f"demo:{index}") for index, row in enumerate(generated))
    if request.data.dataset == "hhh":
        return hhh.read(request.source, "test", request.data.test_size)
    return jsonl.read(request.data.test_path) if request.data.test_path else None


def check(tally: Tally, split_name: str, most: float) -> None:
    """Raises DataError when a split is mostly malformed, or empty."""
    check_malformed(tally, split_name, most)
    if not tally.kept:
        causes = ", ".join(f"{count} {cause}" for cause, count in tally.dropped.items()) or "nothing was there"
        raise DataError(
            f"No {split_name} pair is left of {tally.read} rows ({causes}).",
            "Training and testing need pairs (a file without test_path gives a tenth of its pairs to the test).",
            "Check the dataset, or give test_path.",
        )


def check_malformed(tally: Tally, split_name: str, most: float) -> None:
    """Raises DataError, showing the first of them, when too many rows are malformed."""
    malformed = tally.dropped["malformed"]
    if malformed > most * tally.read:
        raise DataError(
            f"{malformed} of {tally.read} {split_name} rows are malformed, as {'; '.join(tally.worst)}.",
            f"At most {most:.0%} may be (max_dropped_fraction).",
            "Mend the rows, or raise max_dropped_fraction.",
        )
