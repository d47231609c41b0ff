"""``tulu3``: the preference mixture of Tülu 3 8B (arXiv 2411.15124), two conversations a row."""

from dpo_core.data.conversation import convert_conversations, parse_messages, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.row_outcome import Outcome, Row
from dpo_core.pair import Pair


@tolerant
def convert(row: Row, where: str) -> Outcome:
    """Two conversations that share every message but a last, differing assistant one."""
    return convert_conversations(
        Pair(parse_messages(row["chosen"], "assistant"), parse_messages(row["rejected"], "assistant")), where
    )


DATASET = HubDataset("allenai/llama-3.1-tulu-3-8b-preference-mixture", convert)
