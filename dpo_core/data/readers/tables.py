"""Table reader: the splits of a file or directory through ``datasets``, memory-mapped."""

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
SAVED_MARKERS = ("dataset_dict.json", "state.json")
ROWS_PER_BATCH = 1000
REUSE, REBUILD = "reuse_dataset_if_exists", "reuse_cache_if_exists"

Table = Any
Splits = Sequence[tuple[str, str | None]]


def load(path: Path, config: str | None = None) -> dict[str, Table]:
    """The splits by name, memory-mapped; a damaged cache of ``datasets`` is rebuilt.

    ``path``: a file, a directory laid out as on the hub, or one saved by ``datasets``. ``config``: the dataset's
    configuration, or a subdirectory.
    Raises DataError when they do not load.
    """
    # Lazy: datasets takes a second to import, which JSONL files do not need.
    from datasets import disable_progress_bars
    from datasets.exceptions import DatasetsError

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        try:
            return load_splits(path, config, REUSE)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, DatasetsError):
                raise
            return load_splits(path, config, REBUILD)
    except (DatasetsError, ValueError, OSError, pa.ArrowException) as error:
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"{path} does not load: {reason}.",
            "A dataset is parquet, JSON, JSONL or Arrow files, in one directory as on the hub, or saved by datasets.",
            "Check the files, and dataset_config where the dataset has several.",
        ) from error


def load_splits(path: Path, config: str | None, mode: str) -> dict[str, Table]:
    """The splits through the loader that fits the path."""
    # Lazy: as above.
    from datasets import DatasetDict, get_dataset_config_names, load_dataset, load_from_disk

    if path.is_file():
        return dict(load_dataset(BUILDERS[path.suffix], data_files=str(path), download_mode=mode))
    if any((path / name).is_file() for name in SAVED_MARKERS):
        dataset = load_from_disk(str(path))
        return dict(dataset) if isinstance(dataset, DatasetDict) else {"train": dataset}
    is_config = config is None or config in get_dataset_config_names(str(path))
    selection = {"name": config} if is_config else {"data_dir": config}
    return dict(load_dataset(str(path), download_mode=mode, **selection))


def choose_splits(tables: dict[str, Table], candidates: Splits, where: str) -> tuple[str, str | None]:
    """The first (train, test) pair of split names among ``candidates`` that the tables have.

    Raises DataError with the available splits when there is none.
    """
    for train, test in candidates:
        if train in tables and (test is None or test in tables):
            return train, test
    requested = " or ".join(" and ".join(name for name in pair if name) for pair in candidates)
    raise DataError(
        f"{where} has no split {requested}; it has {', '.join(sorted(tables)) or 'none'}.",
        "The dataset needs a train split, and a test split if the settings name one.",
        "Name them with train_split and test_split, or add the missing files.",
    )


class RowGrouping(Protocol):
    """Units that become one preference each: rows, or groups of rows."""

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """These units, numbered by their first row in the file."""


class SingleRows:
    """One unit per row."""

    def __init__(self, table: Table) -> None:
        self.table = table.with_format("arrow")

    def __len__(self) -> int:
        return len(self.table)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """These rows, one batch in memory at a time."""
        for start in range(0, len(numbers), ROWS_PER_BATCH):
            batch = [int(number) for number in numbers[start : start + ROWS_PER_BATCH]]
            yield from zip(batch, self.table[batch].to_pylist(), strict=True)


class GroupedRows:
    """One unit per value of a column: the rows with this value, in the order of their first rows."""

    def __init__(self, table: Table, column: str) -> None:
        self.table, self.column = table.with_format("arrow"), column
        members: dict[str, list[int]] = defaultdict(list)
        for number, row in SingleRows(table.select_columns([column])).read(range(len(table))):
            members[fingerprint.of_value(row[column])].append(number)
        self.members = list(members.values())

    def __len__(self) -> int:
        return len(self.members)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """These groups: the value of the common column, and lists of the values of the other columns."""
        for number in numbers:
            rows = self.table[self.members[number]].to_pydict()
            yield self.members[number][0], rows | {self.column: rows[self.column][0]}


def shuffled_order(count: int, seed: int) -> Sequence[int]:
    """The order of ``count`` rows after ``datasets.Dataset.shuffle(seed)``."""
    return np.random.default_rng(seed).permutation(count)  # type: ignore[return-value]  # an array is a sequence of ints
