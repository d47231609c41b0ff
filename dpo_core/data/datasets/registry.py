"""The datasets by name, and what a row of an unnamed source means. A new dataset is a module and a line here."""

from collections.abc import Iterable
from dataclasses import replace

from dpo_core.config.recipe import DataSettings
from dpo_core.config.spelling import did_you_mean
from dpo_core.data.conversation import comparison, conversations, labelled, messages, tolerant
from dpo_core.data.datasets import chatbot_arena, helpsteer2, helpsteer3, hhh, tulu3, ultrafeedback
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.row_outcome import Convert, Outcome, Row
from dpo_core.errors import DataError
from dpo_core.pair import Pair

DATASETS: dict[str, HubDataset] = {
    "hhh": hhh.DATASET,
    "helpsteer3": helpsteer3.DATASET,
    "ultrafeedback": ultrafeedback.DATASET,
    "tulu3": tulu3.DATASET,
    "arena": chatbot_arena.DATASET,
    "helpsteer2": helpsteer2.DATASET,
}
DEMO, HUB = "demo", "hub:"
BESIDES = "demo, a path, hub:<owner>/<name> or package.module:Class"
SCHEMAS = (
    '{"prompt", "chosen", "rejected"}, {"chosen", "rejected"} as transcripts or conversations, '
    '{"comparison", "label"}, or a published dataset\'s; prompt_column, chosen_column and rejected_column rename them'
)


def of_hub(hub_id: str) -> HubDataset:
    """What is known of a repository: a dataset of ours, or else one whose rows are recognised by their columns."""
    for found in DATASETS.values():
        if hub_id in (found.hub_id, *found.also):
            return replace(found, hub_id=hub_id)
    return HubDataset(hub_id, convert)


@tolerant
def convert(row: Row, where: str) -> Outcome:
    """A row of a known schema, by its columns.

    Raises DataError when they belong to none.
    """
    columns = row.keys()
    if {"comparison", "label"} <= columns:
        return comparison(row, where)
    for dataset in DATASETS.values():
        if any(columns >= set(schema) for schema in dataset.schemas):
            return dataset.convert(row, where)
    if {"prompt", "chosen", "rejected"} <= columns:
        return labelled(row["prompt"], row["chosen"], row["rejected"], where)
    if {"chosen", "rejected"} <= columns:
        return two_conversations(row, where)
    raise DataError(f"{where} has columns {sorted(row)}.", f"Known schemas: {SCHEMAS}.", "Rename the columns.")


def two_conversations(row: Row, where: str) -> Outcome:
    """Transcripts, or lists of messages, that share all but the last."""
    if isinstance(row["chosen"], list) and isinstance(row["rejected"], list):
        sides = Pair(messages(row["chosen"], "assistant"), messages(row["rejected"], "assistant"))
        return conversations(sides, where)
    return hhh.convert(row, where)


def mapped(data: DataSettings) -> Convert:
    """``convert``, after the recipe's column mapping; several prompt columns are joined by a blank line."""
    if not (data.prompt_column or data.chosen_column or data.rejected_column):
        return convert
    sides = {"chosen": data.chosen_column or "chosen", "rejected": data.rejected_column or "rejected"}

    def renamed(row: Row, where: str) -> Outcome:
        check_columns([*data.prompt_column, *sides.values()], row, where)
        told = {side: row[column] for side, column in sides.items()}
        if data.prompt_column:
            told["prompt"] = joined([row[column] for column in data.prompt_column])
        elif "prompt" in row:
            told["prompt"] = row["prompt"]
        return convert(told, where)

    return renamed


def joined(parts: list[object]) -> object:
    """The prompt of several columns: their texts, those that say something, under each other; one column as it is."""
    texts = [part for part in parts if isinstance(part, str) and part.strip()]
    return "\n\n".join(texts) if len(parts) > 1 else parts[0]


def check_columns(wanted: Iterable[str], row: Row, where: str) -> None:
    """Raises DataError naming a column that the mapping wants and the row lacks."""
    for column in wanted:
        if column not in row:
            raise DataError(
                f"{where} has no column {column!r}; it has {sorted(row)}.",
                "prompt_column, chosen_column and rejected_column name columns of the dataset.",
                did_you_mean(column, row),
            )
