"""Served model: MLflow's Python model that takes conversations and returns the assistant's next messages.

MLflow executes this file wherever the model is loaded, with dpo_core beside it and the checkpoint as an artifact.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from dpo_core.data.preference import Message

BATCH_SIZE = 32


class ServedModel(PythonModel):
    """Takes ``{"messages": [{"role", "content"}, …]}``, or a table with this column and one row per conversation."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint with the renderer of its training."""
        # Lazy: registering the model imports this file too, and must not spend seconds on importing torch.
        from dpo_core.inference.generator import open_generator
        from dpo_core.inference.load_engine import EngineConfig

        self.answerer = open_generator(
            Path(context.artifacts["checkpoint"]), EngineConfig(engine="torch", batch_size=BATCH_SIZE)
        )

    # MLflow ignores this type hint; from others it would infer a signature, and the model has its own.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Return the responses in the order of the conversations.

        ``params``: ``max_new_tokens``, ``temperature`` (0 is greedy), ``seed``.
        """
        from dpo_core.inference.generator import Sampling  # lazy: as above

        answers = self.answerer.responses(read_conversations(model_input), Sampling(**(params or {})))
        return [answer.text for answer in answers]


def read_conversations(table: pd.DataFrame) -> "list[list[Message]]":
    """Return the column ``messages`` of the table that MLflow makes of every request.

    Raises MlflowException (HTTP 400 when served) for a conversation without messages.
    """
    rows = list(table["messages"])
    if not all(len(conversation) for conversation in rows):
        raise MlflowException.invalid_parameter_value(
            "A conversation has no messages. It needs at least one to respond to."
        )
    return [plain_messages(conversation) for conversation in rows]


def plain_messages(conversation: Sequence[Mapping[str, Any]]) -> "list[Message]":
    """Return messages as plain dictionaries of strings."""
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in conversation]


mlflow.models.set_model(ServedModel())
