"""The registered model as MLflow loads and serves it: conversations in, the assistant's next message out.

MLflow runs this file where the model is loaded, with dpo_core beside it and the checkpoint among its artifacts.
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
    """Answers ``{"messages": [{"role", "content"}, …]}``, or a table with such a column, a row a conversation."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint, with the renderer that it was trained with."""
        # Lazy: torch costs seconds that registering the model, which imports this file too, must not pay.
        from dpo_core.inference.generator import open_generator
        from dpo_core.inference.load_engine import EngineConfig

        self.answerer = open_generator(
            Path(context.artifacts["checkpoint"]), EngineConfig(engine="torch", batch_size=BATCH_SIZE)
        )

    # The hint is one that MLflow leaves alone: of others it would make the signature, and the model brings its own.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """The answers in the conversations' order.

        ``params``: ``max_new_tokens``, ``temperature`` (0 is greedy), ``seed``.
        """
        from dpo_core.inference.generator import Sampling  # lazy: as above

        answers = self.answerer.responses(conversations(model_input), Sampling(**(params or {})))
        return [answer.text for answer in answers]


def conversations(table: pd.DataFrame) -> "list[list[Message]]":
    """The column ``messages`` of the table that MLflow makes of every form of request.

    Raises MlflowException (HTTP 400 when served) for a conversation without messages.
    """
    told = list(table["messages"])
    if not all(len(conversation) for conversation in told):
        raise MlflowException.invalid_parameter_value("A conversation needs a message to answer.")
    return [plain(conversation) for conversation in told]


def plain(conversation: Sequence[Mapping[str, Any]]) -> "list[Message]":
    """Messages as plain dictionaries of strings."""
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in conversation]


mlflow.models.set_model(ServedModel())
