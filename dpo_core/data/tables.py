"""Tables of rows on disk, through ``datasets``: the hub's, a directory's or a file's, mapped and never read whole."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from dpo_core import fingerprint
from dpo_core.data.rows import Row
from dpo_core.errors import DataError

BUILDERS = {".json": "json", ".jsonl": "json", ".gz": "json", ".parquet": "parquet", ".arrow": "arrow"}
SAVED = ("dataset_dict.json", "state.json")
ROWS_A_BATCH = 1000
KEPT, REBUILT = "reuse_dataset_if_exists", "reuse_cache_if_exists"

Table = Any
Splits = Sequence[tuple[str, str | None]]


@dataclass(frozen=True)
class Place:
    """Where tables are: ``source`` is a local path, or ``hub id@commit``; config names a part of the repository."""

    source: str
    config: str | None = None

    @property
    def path(self) -> Path | None:
        """The local path, if it is one."""
        path = Path(self.source)
        return path if path.exists() else None


def load(place: Place) -> dict[str, Table]:
    """The splits by name, memory-mapped; what is damaged in the cache of ``datasets`` is built again.

    Raises DataError when they do not load.
    """
    # Lazy: datasets takes a second to import, which files of lines need not pay.
    from datasets import disable_progress_bars
    from datasets.exceptions import DatasetsError

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        try:
            return fetch(place, KEPT)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, DatasetsError):
                raise
            return fetch(place, REBUILT)
    except (DatasetsError, ValueError, OSError, pa.ArrowException) as error:
        told = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"{place.source} does not load: {told}.",
            "A dataset is parquet, JSON, JSONL or Arrow files, in one directory as on the hub, or saved by datasets.",
            "Check the files, and dataset_config where the dataset has several.",
        ) from error


def fetch(place: Place, mode: str) -> dict[str, Table]:
    """The splits through the loader that fits the place."""
    from datasets import DatasetDict, load_dataset, load_from_disk  # lazy: as above

    path = place.path
    if path is None:
        name, _, commit = place.source.partition("@")
        return dict(load_dataset(name, place.config, revision=commit, download_mode=mode))
    if path.is_file():
        return dict(load_dataset(BUILDERS[path.suffix], data_files=str(path), download_mode=mode))
    if any((path / name).is_file() for name in SAVED):
        saved = load_from_disk(str(path))
        return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
    part = place.config if place.config and (path / place.config).is_dir() else None
    words: dict[str, Any] = {"data_dir": part} if part else {"name": place.config}
    return dict(load_dataset(str(path), download_mode=mode, **words))


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


class Units(Protocol):
    """What becomes one preference each: rows, or groups of rows."""

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """These units, numbered by their first row in the file."""


class Rows:
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


class Groups:
    """Rows with the same value in one column together, in the order of their first ones."""

    def __init__(self, table: Table, column: str) -> None:
        self.table, self.column = table.with_format("arrow"), column
        members: dict[str, list[int]] = defaultdict(list)
        for number, row in Rows(table.select_columns([column])).read(range(len(table))):
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
