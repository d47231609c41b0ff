"""Tables of rows on disk, through ``datasets``: a directory's or a file's, mapped and never read whole."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from dpo_core.cache import fingerprint
from dpo_core.data.row_outcome import Row
from dpo_core.errors import DataError

BUILDERS = {".json": "json", ".jsonl": "json", ".gz": "json", ".parquet": "parquet", ".arrow": "arrow"}
SAVED = ("dataset_dict.json", "state.json")
ROWS_A_BATCH = 1000
KEPT, REBUILT = "reuse_dataset_if_exists", "reuse_cache_if_exists"

Table = Any
Splits = Sequence[tuple[str, str | None]]


def load(path: Path, config: str | None = None) -> dict[str, Table]:
    """The splits by name, memory-mapped; what is damaged in the cache of ``datasets`` is built again.

    path: a file, a directory laid out as on the hub (config: a part of it), or one saved by ``datasets``.
    Raises DataError when they do not load.
    """
    # Lazy: datasets takes a second to import, which files of lines need not pay.
    from datasets import disable_progress_bars
    from datasets.exceptions import DatasetsError

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        try:
            return fetch(path, config, KEPT)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, DatasetsError):
                raise
            return fetch(path, config, REBUILT)
    except (DatasetsError, ValueError, OSError, pa.ArrowException) as error:
        told = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"{path} does not load: {told}.",
            "A dataset is parquet, JSON, JSONL or Arrow files, in one directory as on the hub, or saved by datasets.",
            "Check the files, and dataset_config where the dataset has several.",
        ) from error


def fetch(path: Path, config: str | None, mode: str) -> dict[str, Table]:
    """The splits through the loader that fits the path."""
    # Lazy: as above.
    from datasets import DatasetDict, get_dataset_config_names, load_dataset, load_from_disk

    if path.is_file():
        return dict(load_dataset(BUILDERS[path.suffix], data_files=str(path), download_mode=mode))
    if any((path / name).is_file() for name in SAVED):
        saved = load_from_disk(str(path))
        return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
    named = config is None or config in get_dataset_config_names(str(path))
    part = {"name": config} if named else {"data_dir": config}
    return dict(load_dataset(str(path), download_mode=mode, **part))


def choose(tables: dict[str, Table], wanted: Splits, where: str) -> tuple[str, str | None]:
    """The first pair of split names that the tables have.

    Raises DataError naming those that there are.
    """
    for train, test in wanted:
        if train in tables and (test is None or test in tables):
            return train, test
    asked = " or ".join(" and ".join(name for name in pair if name) for pair in wanted)
    raise DataError(
        f"{where} has no split {asked}; it has {', '.join(sorted(tables)) or 'none'}.",
        "Training needs a train split; a test split may be missing only where nobody names one.",
        "Name them with train_split and test_split, or add the missing files.",
    )


class RowGrouping(Protocol):
    """What becomes one preference each: rows, or groups of rows."""

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """These units, numbered by their first row in the file."""


class SingleRows:
    """Every row by itself."""

    def __init__(self, table: Table) -> None:
        self.table = table.with_format("arrow")

    def __len__(self) -> int:
        return len(self.table)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """These rows, a batch in memory at a time."""
        for start in range(0, len(numbers), ROWS_A_BATCH):
            batch = [int(number) for number in numbers[start : start + ROWS_A_BATCH]]
            yield from zip(batch, self.table[batch].to_pylist(), strict=True)


class GroupedRows:
    """Rows with the same value in one column together, in the order of their first ones."""

    def __init__(self, table: Table, column: str) -> None:
        self.table, self.column = table.with_format("arrow"), column
        members: dict[str, list[int]] = defaultdict(list)
        for number, row in SingleRows(table.select_columns([column])).read(range(len(table))):
            members[fingerprint.of_value(row[column])].append(number)
        self.members = list(members.values())

    def __len__(self) -> int:
        return len(self.members)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """These groups: the common column's value, and lists of the others'."""
        for number in numbers:
            rows = self.table[self.members[number]].to_pydict()
            yield self.members[number][0], rows | {self.column: rows[self.column][0]}


def shuffled(count: int, seed: int) -> Sequence[int]:
    """The order in which ``datasets.Dataset.shuffle(seed)`` puts so many rows."""
    return np.random.default_rng(seed).permutation(count)  # type: ignore[return-value]  # an array is a sequence of ints
