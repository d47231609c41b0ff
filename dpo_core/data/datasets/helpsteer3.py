"""``helpsteer3``: NVIDIA's HelpSteer3-Preference (arXiv 2505.11475), a context and two responses compared."""

from dpo_core.data.conversation import labelled, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.row_outcome import Dropped, Malformed, Outcome, Row
from dpo_core.pair import Pair


@tolerant
def convert(row: Row, where: str) -> Outcome:
    """``overall_preference`` below 0 prefers response 1, above 0 response 2; 0 is a tie."""
    preference = row["overall_preference"]
    if not isinstance(preference, int | float):
        raise Malformed("no preference", f"overall_preference is {preference!r:.40}, not a number")
    if preference == 0:
        return Dropped("tie", where)
    responses = Pair(row["response1"], row["response2"])
    sides = responses if preference < 0 else responses.swap()
    return labelled(row["context"], sides.chosen, sides.rejected, where)


DATASET = HubDataset(
    "nvidia/HelpSteer3",
    convert,
    schemas=(("context", "response1", "response2", "overall_preference"),),
    splits=(("train", "validation"),),
    config="preference",
    files=("README.md", "preference/*"),
)
