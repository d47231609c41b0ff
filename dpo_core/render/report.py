"""The data report after rendering: lengths in tokens, read from the rendered file, and what truncation did."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dpo_core.data.lengths import PARTS, LengthCounts
from dpo_core.data.report import write
from dpo_core.records import DataReport

__all__ = ["in_tokens", "write"]


def in_tokens(rendered: Path, report: DataReport, truncated: int) -> DataReport:
    """A split's report with the lengths of the token pairs in the Arrow file ``rendered``, a batch at a time."""
    counts = LengthCounts("tokens")
    with pa.OSFile(str(rendered)) as source, pa.ipc.open_file(source) as reader:
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            prompt, chosen, rejected = (pc.list_value_length(batch[part]).to_pylist() for part in PARTS)
            counts.add(prompt, chosen, rejected)
    return report.model_copy(update={**counts.told(), "truncated": truncated})
