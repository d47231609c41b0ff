"""Preference pairs as text (prompt, chosen, rejected), and their Arrow files."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import pyarrow as pa

from dpo_core.cache import fingerprint
from dpo_core.pair import Pair

SCHEMA = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected", "source")])
ROWS_PER_BATCH = 1024


class Message(TypedDict):
    """One message. ``role`` is system, user or assistant; train_on_what=customized reads ``trainable``."""

    role: str
    content: str
    trainable: NotRequired[bool]


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with its chosen and rejected completions; the last message of each is the assistant's.

    ``source``: the part of a mixture that the pair comes from, empty where the row names none.
    """

    prompt: list[Message]
    sides: Pair[list[Message]]
    source: str = ""

    @property
    def prompt_key(self) -> str:
        """Fingerprint of the prompt (16 hex digits); equal prompts have equal keys in every process."""
        return fingerprint.of_value(self.prompt)


def write_pairs(path: Path, pairs: Iterable[Preference]) -> int:
    """Stream pairs into an Arrow file, one batch of rows in memory at a time. Returns the number of pairs."""
    count = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches(pairs):
            writer.write_batch(pa.RecordBatch.from_pylist([to_row(pair) for pair in batch], schema=SCHEMA))
            count += len(batch)
    return count


def read_pairs(path: Path) -> Iterator[Preference]:
    """The pairs of an Arrow file in order, one batch in memory at a time."""
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
        for index in range(reader.num_record_batches):
            for row in reader.get_batch(index).to_pylist():
                yield from_row(row)


def batches(pairs: Iterable[Preference]) -> Iterator[list[Preference]]:
    """Lists of up to ROWS_PER_BATCH pairs."""
    batch: list[Preference] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == ROWS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def to_row(pair: Preference) -> dict[str, str]:
    """A pair as a row: prompt, chosen and rejected as JSON, and the source."""
    columns = {"prompt": pair.prompt, "chosen": pair.sides.chosen, "rejected": pair.sides.rejected}
    return {name: json.dumps(messages) for name, messages in columns.items()} | {"source": pair.source}


def from_row(row: dict[str, str]) -> Preference:
    """The inverse of :func:`to_row`."""
    sides = Pair(json.loads(row["chosen"]), json.loads(row["rejected"]))
    return Preference(json.loads(row["prompt"]), sides, row["source"])
