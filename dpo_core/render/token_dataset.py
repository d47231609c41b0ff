"""Rendered pairs: token ids in Arrow files, mapped and read by index."""

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
ROWS_A_BATCH = 1024
TEST_SOURCES = "test_sources.json"


@dataclass(frozen=True, slots=True)
class CompletionTokens:
    """``ids`` (T,) int32 after the prompt, and ``mask`` (T,) bool: which of them are trained."""

    ids: Ids
    mask: Mask


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The prompt's ids (P,) int32, the same for both sides, and the two completions.

    ``whole_prompt``: the prompt's ids before truncation, where it was cut and they are kept (of the test split).
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
    """A split's pairs by index, from a memory map."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def lengths(self) -> tuple[Ids, Pair[Ids]]:
        """Tokens of every pair's prompt and of its completions, (N,) int32 each, without reading the tokens."""
        prompt, chosen, rejected = (
            np.asarray(pc.list_value_length(self._table[name])) for name in ("prompt", "chosen", "rejected")
        )
        return prompt, Pair(chosen, rejected)

    def largest_id(self) -> int:
        """The largest token id of all; -1 without tokens."""
        columns = [self._table[name] for name in ("prompt", "chosen", "rejected")]
        return max((pc.max(pc.list_flatten(column)).as_py() or -1 for column in columns), default=-1)

    def __getitem__(self, index: int) -> TokenPair:
        chosen = CompletionTokens(self._ids("chosen", index), self._mask("chosen_mask", index))
        rejected = CompletionTokens(self._ids("rejected", index), self._mask("rejected_mask", index))
        return TokenPair(self._ids("prompt", index), Pair(chosen, rejected))

    def whole_prompts(self, count: int) -> list[list[int]]:
        """The first ``count`` prompts as they are before truncation: what to generate from."""
        whole = (self._table["whole_prompt"][index] for index in range(min(count, len(self))))
        return [
            prompt.as_py() if prompt.is_valid else self._ids("prompt", index).tolist()
            for index, prompt in enumerate(whole)
        ]

    def _ids(self, column: str, index: int) -> Ids:
        return np.asarray(self._table[column][index].values.to_numpy(zero_copy_only=False), dtype=np.int32)

    def _mask(self, column: str, index: int) -> Mask:
        return np.asarray(self._table[column][index].values.to_numpy(zero_copy_only=False), dtype=np.bool_)


def open_split(path: Path, split: str) -> TokenDataset:
    """The ``train`` or ``test`` split of a RenderedSet's directory."""
    return TokenDataset(path / f"{split}.arrow")


def test_sources(path: Path) -> list[str]:
    """The source of every pair of the ``test`` split; empty where none of them has one."""
    file = path / TEST_SOURCES
    return list(json.loads(file.read_text())) if file.is_file() else []


def write_split(path: Path, pairs: Iterable[TokenPair]) -> None:
    """Stream token pairs into an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        batch: list[TokenPair] = []
        for pair in pairs:
            batch.append(pair)
            if len(batch) == ROWS_A_BATCH:
                writer.write_batch(to_batch(batch))
                batch = []
        writer.write_batch(to_batch(batch))


def to_batch(pairs: list[TokenPair]) -> pa.RecordBatch:
    """Columns of token ids and masks."""
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
    """A column of lists, from one array for all their values; None becomes null."""
    there = [row for row in rows if row is not None]
    offsets = np.cumsum([0, *(0 if row is None else len(row) for row in rows)], dtype=np.int32)
    values = pa.array(np.concatenate(there) if there else np.empty(0), type=kind.value_type)
    missing = pa.array([row is None for row in rows]) if len(there) < len(rows) else None
    return pa.ListArray.from_arrays(offsets, values, type=kind, mask=missing)
