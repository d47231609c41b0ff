"""``ultrafeedback``: binarized UltraFeedback (arXiv 2310.01377) as Argilla and as HuggingFaceH4 publish it."""

from dpo_core.data.conversation import convert_conversations, labelled, parse_messages, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.row_outcome import Dropped, Malformed, Outcome, Row
from dpo_core.pair import Pair

SCORES = Pair(("score_chosen", "chosen_avg_rating"), ("score_rejected", "rejected_avg_rating"))
TURNS = 2


@tolerant
def convert(row: Row, where: str) -> Outcome:
    """Convert a row of either schema, one question with two responses; equal scores are a tie."""
    scores = SCORES.map(lambda names: next((row[name] for name in names if row.get(name) is not None), None))
    if scores.chosen is not None and scores.chosen == scores.rejected:
        return Dropped("tie", where)
    if "instruction" in row:
        return labelled(row["instruction"], row["chosen_response"], row["rejected_response"], where)
    sides = Pair(parse_messages(row["chosen"], "assistant"), parse_messages(row["rejected"], "assistant"))
    if len(sides.chosen) != TURNS or len(sides.rejected) != TURNS:
        raise Malformed("not a single turn", "each side is one question and one response")
    return convert_conversations(sides, where)


DATASET = HubDataset(
    "argilla/ultrafeedback-binarized-preferences",
    convert,
    schemas=(
        ("instruction", "chosen_response", "rejected_response"),
        ("chosen", "rejected", "score_chosen", "score_rejected"),
    ),
    splits=(("train_prefs", "test_prefs"), ("train", None)),
    also=("HuggingFaceH4/ultrafeedback_binarized",),
)
