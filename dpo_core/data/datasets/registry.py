"""Registry of the named datasets, and the conversion of rows by their columns. A new dataset adds one line."""

from collections.abc import Iterable
from dataclasses import replace

from dpo_core.config.recipe import DataSettings
from dpo_core.config.spelling import did_you_mean
from dpo_core.data.conversation import convert_comparison, convert_conversations, labelled, parse_messages, tolerant
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
OTHER_FORMS = "demo, a path, hub:<owner>/<name> or package.module:Class"
SCHEMAS = (
    '{"prompt", "chosen", "rejected"}, {"chosen", "rejected"} as transcripts or conversations, '
    '{"comparison", "label"}, or a published dataset\'s; prompt_column, chosen_column and rejected_column rename them'
)


def dataset_of_repository(hub_id: str) -> HubDataset:
    """The named dataset of a hub repository, or else a HubDataset that converts rows by their columns."""
    for dataset in DATASETS.values():
        if hub_id in (dataset.hub_id, *dataset.also):
            return replace(dataset, hub_id=hub_id)
    return HubDataset(hub_id, convert_by_columns)


@tolerant
def convert_by_columns(row: Row, where: str) -> Outcome:
    """Convert a row by the schema that its columns match.

    Raises DataError when they match none.
    """
    columns = row.keys()
    if {"comparison", "label"} <= columns:
        return convert_comparison(row, where)
    for dataset in DATASETS.values():
        if any(columns >= set(schema) for schema in dataset.schemas):
            return dataset.convert(row, where)
    if {"prompt", "chosen", "rejected"} <= columns:
        return labelled(row["prompt"], row["chosen"], row["rejected"], where)
    if {"chosen", "rejected"} <= columns:
        return two_conversations(row, where)
    raise DataError(f"{where} has columns {sorted(row)}.", f"Known schemas: {SCHEMAS}.", "Rename the columns.")


def two_conversations(row: Row, where: str) -> Outcome:
    """A pair from two transcripts, or two lists of messages, that share all messages but the last."""
    if isinstance(row["chosen"], list) and isinstance(row["rejected"], list):
        sides = Pair(parse_messages(row["chosen"], "assistant"), parse_messages(row["rejected"], "assistant"))
        return convert_conversations(sides, where)
    return hhh.convert(row, where)


def converter_with_mapping(data: DataSettings) -> Convert:
    """``convert_by_columns`` with the recipe's column mapping; several prompt columns are joined by a blank line."""
    if not (data.prompt_column or data.chosen_column or data.rejected_column):
        return convert_by_columns
    sides = {"chosen": data.chosen_column or "chosen", "rejected": data.rejected_column or "rejected"}

    def convert_renamed(row: Row, where: str) -> Outcome:
        check_columns([*data.prompt_column, *sides.values()], row, where)
        columns = {side: row[column] for side, column in sides.items()}
        if data.prompt_column:
            columns["prompt"] = join_prompt_columns([row[column] for column in data.prompt_column])
        elif "prompt" in row:
            columns["prompt"] = row["prompt"]
        return convert_by_columns(columns, where)

    return convert_renamed


def join_prompt_columns(parts: list[object]) -> object:
    """The non-empty texts of several columns, joined by a blank line; a single column unchanged."""
    texts = [part for part in parts if isinstance(part, str) and part.strip()]
    return "\n\n".join(texts) if len(parts) > 1 else parts[0]


def check_columns(columns: Iterable[str], row: Row, where: str) -> None:
    """Raises DataError for a column of the mapping that the row lacks."""
    for column in columns:
        if column not in row:
            raise DataError(
                f"{where} has no column {column!r}; it has {sorted(row)}.",
                "prompt_column, chosen_column and rejected_column name columns of the dataset.",
                did_you_mean(column, row),
            )
