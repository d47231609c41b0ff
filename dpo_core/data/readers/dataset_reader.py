"""Dataset reader: the rows of a pinned source, converted to preferences, as train and test rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_core.data.datasets import custom
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.datasets.registry import convert_by_columns, converter_with_mapping
from dpo_core.data.demo import demo_pairs
from dpo_core.data.readers import jsonl, tables
from dpo_core.data.readers.hub import HubRepository, snapshot
from dpo_core.data.readers.tables import GroupedRows, RowGrouping, Table
from dpo_core.data.row_outcome import Convert, Outcome, with_source
from dpo_core.data.sources import LOCAL_ALTERNATIVE, dataset_kind, find_description, resolve_path
from dpo_core.stages.acquire import AcquireRequest
from dpo_core.system.progress import Progress

SHUFFLE_SEED = 0
HELD_OUT_DIVISOR = 10


@dataclass(frozen=True)
class DatasetSplits:
    """The converted train and test rows. ``test`` None: the test split is taken from the train rows, by prompt."""

    train: Iterator[Outcome]
    test: Iterator[Outcome] | None


def open_source(request: AcquireRequest) -> DatasetSplits:
    """The rows of the pinned source.

    Raises DataError when they do not load, or lack the splits that the recipe names.
    """
    data, kind = request.data, dataset_kind(request.data)
    if kind == "demo":
        demo = demo_pairs.generate(data.demo_pairs, request.seed)
        return DatasetSplits(demo_rows(demo.train), demo_rows(demo.test))
    dataset = None if kind in ("file", "directory") else find_description(data, kind)
    if kind == "custom" and dataset is None:
        return DatasetSplits(*custom.Builder.build(data.dataset, custom.import_object(data.dataset)).open())
    if dataset is None or dataset.convert is convert_by_columns:
        return open_by_columns(request)
    return open_described(request, dataset)


def demo_rows(rows: list[demo_pairs.Row]) -> Iterator[Outcome]:
    """Convert the demo's rows."""
    return (convert_by_columns(dict(row), f"demo:{number}") for number, row in enumerate(rows))


def open_by_columns(request: AcquireRequest) -> DatasetSplits:
    """Open a source whose rows are converted by their columns, in their stored order."""
    data, convert, path = request.data, converter_with_mapping(request.data), local_path(request, ())
    held_out = file_rows(Path(resolve_path(data.test_path)), convert) if data.test_path else None
    if path.is_file():
        return DatasetSplits(file_rows(path, convert), held_out)
    splits = tables.load(path, data.dataset_config)
    test_names = ["test", "validation", None] if data.test_split is None else [data.test_split]
    candidates = [(data.train_split, split) for split in ([None] if held_out else test_names)]
    train, test = tables.choose_splits(splits, candidates, request.source)
    name = Path(request.source).name
    return DatasetSplits(
        table_rows(splits[train], convert, f"{name} {train}"),
        table_rows(splits[test], convert, f"{name} {test}") if test else held_out,
    )


def file_rows(path: Path, convert: Convert) -> Iterator[Outcome]:
    """Convert the rows of one file."""
    if path.name.endswith(jsonl.SUFFIXES):
        return jsonl.read(path, convert)
    (table,) = tables.load(path).values()
    return table_rows(table, convert, path.name)


def table_rows(table: Table, convert: Convert, where: str) -> Iterator[Outcome]:
    """Convert the rows of a table in their stored order."""
    return convert_rows(tables.SingleRows(table), range(len(table)), convert, where)


def local_path(request: AcquireRequest, files: tuple[str, ...]) -> Path:
    """The path of the pinned source on this disk: of a hub commit in the hub's cache, downloaded where needed."""
    if Path(request.source).exists():
        return Path(request.source)
    name, _, commit = request.source.partition("@")
    return snapshot(HubRepository("dataset", name, commit, LOCAL_ALTERNATIVE), files)


def open_described(request: AcquireRequest, dataset: HubDataset) -> DatasetSplits:
    """Open a HubDataset, shuffled with SHUFFLE_SEED; its test split, or else its first rows, are held out."""
    path, test_size, name = local_path(request, dataset.files), request.data.test_size, Path(request.source).name
    if path.name.endswith(jsonl.SUFFIXES) and not dataset.group_by:
        return DatasetSplits(jsonl.read(path, dataset.convert), None)
    is_file = path.is_file()
    splits = tables.load(path, None if is_file else dataset.config)
    train, test = tables.choose_splits(splits, [("train", None)] if is_file else dataset.splits, request.source)
    rows, order = shuffled_rows(splits[train], dataset)
    where = f"{name} {train}"
    if test is None:
        test_size = held_out_count(len(order), test_size)
        held_out = convert_rows(rows, order[:test_size], dataset.convert, where)
        return DatasetSplits(convert_rows(rows, order[test_size:], dataset.convert, where), held_out)
    test_rows, test_order = shuffled_rows(splits[test], dataset)
    held_out = convert_rows(test_rows, test_order[:test_size], dataset.convert, f"{name} {test}")
    return DatasetSplits(convert_rows(rows, order, dataset.convert, where), held_out)


def held_out_count(count: int, max_count: int) -> int:
    """How many of ``count`` rows to hold out: a tenth, at least 1 (0 of a single row), at most ``max_count``."""
    return min(max_count, max(count // HELD_OUT_DIVISOR, min(count - 1, 1)))


def shuffled_rows(table: Table, dataset: HubDataset) -> tuple[RowGrouping, Sequence[int]]:
    """The rows (or groups of rows) that become one preference each, and their shuffled order."""
    rows: RowGrouping = GroupedRows(table, dataset.group_by) if dataset.group_by else tables.SingleRows(table)
    return rows, tables.shuffled_order(len(rows), SHUFFLE_SEED)


def convert_rows(rows: RowGrouping, order: Sequence[int], convert: Convert, where: str) -> Iterator[Outcome]:
    """Convert the rows in the given order; ``where`` and the row's number name each one."""
    units = Progress(f"reading {where}", len(order), "rows").track(rows.read(order))
    return (with_source(convert(row, f"{where} row {number}"), row) for number, row in units)
