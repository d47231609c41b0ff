"""Token dataset: token ids and loss masks of pairs in Arrow files, memory-mapped and read by index."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dpo_core.pair import Pair

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]

SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.int32())),
        ("chosen", pa.list_(pa.int32())),
        ("chosen_mask", pa.list_(pa.bool_())),
        ("rejected", pa.list_(pa.int32())),
        ("rejected_mask", pa.list_(pa.bool_())),
        ("whole_prompt", pa.list_(pa.int32())),
    ]
)
ROWS_PER_BATCH = 1024
TEST_SOURCES = "test_sources.json"


@dataclass(frozen=True, slots=True)
class CompletionTokens:
    """A completion: ``ids`` (T,) int32 after the prompt, and ``mask`` (T,) bool, True where trained."""

    ids: Ids
    mask: Mask


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The prompt's ids (P,) int32, the same for both sides, and the two completions.

    ``whole_prompt``: the prompt's ids (P,) int32 before truncation, kept for cut prompts of the test split.
    """

    prompt: Ids
    sides: Pair[CompletionTokens]
    whole_prompt: Ids | None = None

    @property
    def tokens(self) -> int:
        """Tokens of both full sequences, the prompt counted in each."""
        return 2 * len(self.prompt) + len(self.sides.chosen.ids) + len(self.sides.rejected.ids)

    @property
    def trained(self) -> int:
        """Trained tokens of both sides."""
        return int(self.sides.chosen.mask.sum()) + int(self.sides.rejected.mask.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longer full sequence."""
        return len(self.prompt) + max(len(self.sides.chosen.ids), len(self.sides.rejected.ids))


class TokenDataset:
    """The pairs of one split by index, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def lengths(self) -> tuple[Ids, Pair[Ids]]:
        """Numbers of tokens of every prompt and of its completions, (N,) int32 each, without reading the tokens."""
        prompt, chosen, rejected = (
            np.asarray(pc.list_value_length(self._table[name])) for name in ("prompt", "chosen", "rejected")
        )
        return prompt, Pair(chosen, rejected)

    def largest_id(self) -> int:
        """The largest token id in the split; -1 without tokens."""
        columns = [self._table[name] for name in ("prompt", "chosen", "rejected")]
        return max((pc.max(pc.list_flatten(column)).as_py() or -1 for column in columns), default=-1)

    def __getitem__(self, index: int) -> TokenPair:
        chosen = CompletionTokens(self._ids("chosen", index), self._mask("chosen_mask", index))
        rejected = CompletionTokens(self._ids("rejected", index), self._mask("rejected_mask", index))
        return TokenPair(self._ids("prompt", index), Pair(chosen, rejected))

    def whole_prompts(self, count: int) -> list[list[int]]:
        """The ids of the first ``count`` prompts before truncation, for generation."""
        cells = (self._table["whole_prompt"][index] for index in range(min(count, len(self))))
        return [
            prompt.as_py() if prompt.is_valid else self._ids("prompt", index).tolist()
            for index, prompt in enumerate(cells)
        ]

    def _ids(self, column: str, index: int) -> Ids:
        return np.asarray(self._table[column][index].values.to_numpy(zero_copy_only=False), dtype=np.int32)

    def _mask(self, column: str, index: int) -> Mask:
        return np.asarray(self._table[column][index].values.to_numpy(zero_copy_only=False), dtype=np.bool_)


def open_split(path: Path, split: str) -> TokenDataset:
    """The ``train`` or ``test`` split of a RenderedSet's directory."""
    return TokenDataset(path / f"{split}.arrow")


def test_sources(path: Path) -> list[str]:
    """The source of every pair of the ``test`` split; empty where no pair has a source."""
    file = path / TEST_SOURCES
    return list(json.loads(file.read_text())) if file.is_file() else []


def write_split(path: Path, pairs: Iterable[TokenPair]) -> None:
    """Stream token pairs into an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        batch: list[TokenPair] = []
        for pair in pairs:
            batch.append(pair)
            if len(batch) == ROWS_PER_BATCH:
                writer.write_batch(to_batch(batch))
                batch = []
        writer.write_batch(to_batch(batch))


def to_batch(pairs: list[TokenPair]) -> pa.RecordBatch:
    """A record batch of SCHEMA from token pairs."""
    chosen, rejected = [pair.sides.chosen for pair in pairs], [pair.sides.rejected for pair in pairs]
    columns: list[Sequence[Ids | Mask | None]] = [
        [pair.prompt for pair in pairs],
        [side.ids for side in chosen],
        [side.mask for side in chosen],
        [side.ids for side in rejected],
        [side.mask for side in rejected],
        [pair.whole_prompt for pair in pairs],
    ]
    arrays = [to_lists(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def to_lists(rows: Sequence[Ids | Mask | None], kind: pa.DataType) -> pa.ListArray:
    """A list column with the values of all rows in one array; None becomes null."""
    present = [row for row in rows if row is not None]
    offsets = np.cumsum([0, *(0 if row is None else len(row) for row in rows)], dtype=np.int32)
    values = pa.array(np.concatenate(present) if present else np.empty(0), type=kind.value_type)
    missing = pa.array([row is None for row in rows]) if len(present) < len(rows) else None
    return pa.ListArray.from_arrays(offsets, values, type=kind, mask=missing)
