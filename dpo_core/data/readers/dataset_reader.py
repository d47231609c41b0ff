"""The rows of a pinned source as preferences: those to train on, and those held out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_core.data.datasets import custom
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.datasets.registry import convert, mapped
from dpo_core.data.demo import demo_pairs
from dpo_core.data.readers import jsonl, tables
from dpo_core.data.readers.hub import HubRepository, snapshot
from dpo_core.data.readers.tables import GroupedRows, RowGrouping, Table
from dpo_core.data.row_outcome import Convert, Outcome, sourced
from dpo_core.data.sources import INSTEAD, kind_of, known, located
from dpo_core.stages.acquire import AcquireRequest
from dpo_core.system.progress import Progress

SHUFFLE_SEED = 0
TEST_SHARE = 10


@dataclass(frozen=True)
class DatasetSplits:
    """The rows to train on and the rows held out; without the latter they are taken from the former by prompt."""

    train: Iterator[Outcome]
    test: Iterator[Outcome] | None


def open_source(request: AcquireRequest) -> DatasetSplits:
    """The rows of the pinned source.

    Raises DataError when they do not load, or have not the splits that are asked for.
    """
    data, kind = request.data, kind_of(request.data)
    if kind == "demo":
        made = demo_pairs.generate(data.demo_pairs, request.seed)
        return DatasetSplits(generated(made.train), generated(made.test))
    dataset = None if kind in ("file", "directory") else known(data, kind)
    if kind == "custom" and dataset is None:
        return DatasetSplits(*custom.Builder.build(data.dataset, custom.find(data.dataset)).open())
    if dataset is None or dataset.convert is convert:
        return unnamed(request)
    return published(request, dataset)


def generated(rows: list[demo_pairs.Row]) -> Iterator[Outcome]:
    """The demo's rows, converted."""
    return (convert(dict(row), f"demo:{number}") for number, row in enumerate(rows))


def unnamed(request: AcquireRequest) -> DatasetSplits:
    """Rows whose columns tell what they are, in their own order."""
    data, reading, path = request.data, mapped(request.data), fetched(request, ())
    held_out = file_rows(Path(located(data.test_path)), reading) if data.test_path else None
    if path.is_file():
        return DatasetSplits(file_rows(path, reading), held_out)
    found = tables.load(path, data.dataset_config)
    own = ["test", "validation", None] if data.test_split is None else [data.test_split]
    wanted = [(data.train_split, split) for split in ([None] if held_out else own)]
    train, test = tables.choose(found, wanted, request.source)
    name = Path(request.source).name
    return DatasetSplits(
        in_order(found[train], reading, f"{name} {train}"),
        in_order(found[test], reading, f"{name} {test}") if test else held_out,
    )


def file_rows(path: Path, reading: Convert) -> Iterator[Outcome]:
    """The rows of one file."""
    if path.name.endswith(jsonl.SUFFIXES):
        return jsonl.read(path, reading)
    (table,) = tables.load(path).values()
    return in_order(table, reading, path.name)


def in_order(table: Table, reading: Convert, where: str) -> Iterator[Outcome]:
    """The rows of a table as it has them."""
    return outcomes(tables.SingleRows(table), range(len(table)), reading, where)


def fetched(request: AcquireRequest, files: tuple[str, ...]) -> Path:
    """Where the pinned source is on this disk: a hub's commit in the hub's cache, anything else where it was."""
    if Path(request.source).exists():
        return Path(request.source)
    name, _, commit = request.source.partition("@")
    return snapshot(HubRepository("dataset", name, commit, INSTEAD), files)


def published(request: AcquireRequest, dataset: HubDataset) -> DatasetSplits:
    """A described dataset, shuffled with the reference's seed; held out is its test split, or else its first rows."""
    path, most, name = fetched(request, dataset.files), request.data.test_size, Path(request.source).name
    if path.name.endswith(jsonl.SUFFIXES) and not dataset.group_by:
        return DatasetSplits(jsonl.read(path, dataset.convert), None)
    whole = path.is_file()
    found = tables.load(path, None if whole else dataset.config)
    train, test = tables.choose(found, [("train", None)] if whole else dataset.splits, request.source)
    rows, order = shuffled(found[train], dataset)
    told = f"{name} {train}"
    if test is None:
        most = held_out_of(len(order), most)
        held_out = outcomes(rows, order[:most], dataset.convert, told)
        return DatasetSplits(outcomes(rows, order[most:], dataset.convert, told), held_out)
    test_rows, test_order = shuffled(found[test], dataset)
    held_out = outcomes(test_rows, test_order[:most], dataset.convert, f"{name} {test}")
    return DatasetSplits(outcomes(rows, order, dataset.convert, told), held_out)


def held_out_of(count: int, most: int) -> int:
    """How many are held out of so many: a tenth, at least one unless there is only one, ``most`` at most."""
    return min(most, max(count // TEST_SHARE, min(count - 1, 1)))


def shuffled(table: Table, dataset: HubDataset) -> tuple[RowGrouping, Sequence[int]]:
    """What becomes one preference each, and the order in which they are taken."""
    rows: RowGrouping = GroupedRows(table, dataset.group_by) if dataset.group_by else tables.SingleRows(table)
    return rows, tables.shuffled(len(rows), SHUFFLE_SEED)


def outcomes(rows: RowGrouping, order: Sequence[int], reading: Convert, where: str) -> Iterator[Outcome]:
    """Rows in an order, converted; each is named by its number in the file."""
    units = Progress(f"reading {where}", len(order), "rows").track(rows.read(order))
    return (sourced(reading(row, f"{where} row {number}"), row) for number, row in units)
