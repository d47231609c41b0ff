"""What the tests of data share: acquiring into a store of its own, tables written as the hub has them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_core.cache.store import Store
from dpo_core.config.recipe import DataSettings
from dpo_core.data import acquire
from dpo_core.data.preference import Preference, read_pairs
from dpo_core.records import PairSet
from dpo_core.stages.acquire import AcquireRequest

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of ``datasets``, for this test alone."""
    import datasets.config

    cache = tmp_path / "hf-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def acquired(directory: Path, data: DataSettings, key: str = "key") -> PairSet:
    """The PairSet of a stage that was run in this process."""
    store = Store(directory / "store")
    with store.write("acquire", key) as draft:
        acquire.run(AcquireRequest(data=data, source=acquire.pin_source(data), seed=0), draft)
    found = store.find("acquire", key, PairSet)
    assert found is not None
    return found


def pairs_of(found: PairSet, split: str = "train") -> list[Preference]:
    return list(read_pairs(found.path / f"{split}.arrow"))


def write_rows(path: Path, rows: Rows) -> Path:
    """Rows as parquet, JSON, JSONL or JSONL.gz, by the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    return path


Write = Callable[..., Path]
