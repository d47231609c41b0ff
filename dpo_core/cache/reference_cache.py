"""Reference cache: the file of log-probabilities, and those that earlier runs stored, for a run that needs others too.

Outputs of ``score_reference`` with the same ``base_key`` hold values of the same pairs under the same reference, scored
in the same numerics; they differ in which of the pairs they hold. Each is whole, and none is ever changed: a run that
needs more gets an output of its own, into which it copies what is there.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from dpo_core.cache.store import RECORD, Store
from dpo_core.records import ReferenceSet

STAGE = "score_reference"
# Where each scored pair's tokens begin in the flat ``logps``; its two sides follow each other, chosen first.
INDEX, OFFSETS, LOGPS = "index", "offsets", "logps"

Logps = NDArray[np.float32]


def find(store: Store, base_key: str, wanted: Mapping[str, list[int]]) -> dict[str, dict[int, Logps]]:
    """Stored log-probabilities of the wanted pairs, by split and pair index; what nobody has scored is left out.

    wanted: pair indices by split. Outputs are taken only if their digests are right.
    """
    found: dict[str, dict[int, Logps]] = {name: {} for name in wanted}
    for key in candidates(store, base_key):
        missing = {name: set(indices) - found[name].keys() for name, indices in wanted.items()}
        if not any(missing.values()):
            break
        if store.find(STAGE, key, ReferenceSet) is None:
            continue
        for name, indices in missing.items():
            path = split_file(store.entry(STAGE, key), name)
            if indices and path.is_file():
                found[name] |= {index: logps for index, logps in read(path) if index in indices}
    return found


def layouts(store: Store, base_key: str) -> dict[str, Literal["tree", "padded"]]:
    """What outputs with this base key found out about layouts."""
    found: dict[str, Literal["tree", "padded"]] = {}
    for key in candidates(store, base_key):
        record = store.find(STAGE, key, ReferenceSet)
        found |= record.layouts if record else {}
    return found


def candidates(store: Store, base_key: str) -> list[str]:
    """Outputs with this base key, those with the most pairs first."""
    sizes = {}
    for key in store.keys(STAGE) if base_key else []:
        try:
            record = json.loads((store.entry(STAGE, key) / RECORD).read_text())
        except (OSError, ValueError):
            continue  # damaged, or deleted meanwhile
        if record.get("base_key") == base_key:
            sizes[key] = record["train_pairs"]
    return sorted(sizes, key=lambda key: (-sizes[key], key))


def split_file(directory: Path, split_name: str) -> Path:
    """The file of the ``train`` or ``test`` split in an output's directory."""
    return directory / f"{split_name}.safetensors"


def flat(indices: list[int], logps: Mapping[int, Logps]) -> dict[str, NDArray[np.generic]]:
    """A file's tensors: these pairs' log-probabilities one after another, offsets (N + 1,) and pair indices (N,)."""
    runs = [logps[index] for index in indices]
    return {
        INDEX: np.array(indices, dtype=np.int64),
        OFFSETS: np.cumsum([0, *(len(run) for run in runs)]).astype(np.int64),
        LOGPS: np.concatenate(runs),
    }


def read(path: Path) -> Iterator[tuple[int, Logps]]:
    """The inverse of :func:`flat`: each pair's index and its log-probabilities."""
    tensors = load_file(path)
    runs = np.split(tensors[LOGPS], tensors[OFFSETS][1:-1])
    yield from zip(tensors[INDEX].tolist(), runs, strict=True)
