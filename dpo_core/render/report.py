"""Data report after rendering: lengths in tokens from the rendered file, and the number of truncated pairs."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dpo_core.data.lengths import PARTS, LengthCounts
from dpo_core.data.report import write_report
from dpo_core.records import DataReport

__all__ = ["with_token_lengths", "write_report"]


def with_token_lengths(rendered: Path, report: DataReport, truncated: int) -> DataReport:
    """The report with the lengths in tokens of the pairs in the Arrow file ``rendered``, read batch by batch."""
    counts = LengthCounts("tokens")
    with pa.OSFile(str(rendered)) as source, pa.ipc.open_file(source) as reader:
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            prompt, chosen, rejected = (pc.list_value_length(batch[part]).to_pylist() for part in PARTS)
            counts.add(prompt, chosen, rejected)
    return report.model_copy(update={**counts.report_fields(), "truncated": truncated})
