"""inspect-ai's way to our models: the provider ``dpo``, as in ``inspect eval … --model dpo/<directory>``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from tenacity.wait import WaitBaseT, wait_none

from dpo_core.data.preference import Message
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.answers import Answer, Answerer, Sampling, open_answerer
from dpo_core.recipe import EvaluateSettings

QUIET_S = 0.03
CONNECTIONS = 4096
DEFAULT = GenerateConfig()

# Settings of a generation that would change answers and that our decoding does not have: refused, not ignored.
UNSUPPORTED = (
    *("top_p", "top_k", "stop_seqs", "num_choices", "logprobs"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "response_schema"),
)


@dataclass(eq=False, slots=True)
class Request:
    """One conversation that waits for its answer, or for the failure of its batch."""

    conversation: list[Message]
    sampling: Sampling
    answer: Answer | None = None
    failure: Exception | None = None

    @property
    def served(self) -> bool:
        """Whether nothing remains to be done."""
        return self.answer is not None or self.failure is not None


class DPOModel(ModelAPI):
    """A transformers directory behind inspect-ai; concurrent requests are decoded together."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = DEFAULT,
        **model_args: Any,
    ) -> None:
        """Open the directory ``model_name``; ``-M renderer_name=…`` and ``-M batch_size=…`` as needed.

        ``answerer``, if given, is a model that is open already. Raises DPOError for a directory that cannot be used.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        settings = EvaluateSettings()
        self.answerer: Answerer = model_args.pop("answerer", None) or open_answerer(
            Path(model_name),
            int(model_args.pop("batch_size", settings.eval_batch_size)),
            model_args.pop("renderer_name", None),
        )
        if model_args:
            found = f"The provider dpo has no argument {', '.join(sorted(model_args))}."
            raise EvaluationError(found, "It takes renderer_name and batch_size.", "Leave out the others.")
        self.default_tokens = settings.max_new_tokens
        self.waiting: list[Request] = []
        self.turn = anyio.Lock()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one conversation, together with all that wait by then.

        Whoever's turn it is serves everyone who waits: no task of our own that could outlive the evaluation.
        """
        refuse_unsupported(tools, config)
        request = Request([to_message(message) for message in input], self.sampling(config))
        self.waiting.append(request)
        async with self.turn:
            if not request.served:
                await self.serve(request.sampling)
        if request.answer is None:
            raise request.failure or RuntimeError("the request was not among those that wait")
        return to_output(self.model_name, request.answer)

    async def serve(self, sampling: Sampling) -> None:
        """Answer everyone who waits for answers drawn in this way, once no more arrive."""
        count = 0
        while count != len(self.waiting):
            count = len(self.waiting)
            await anyio.sleep(QUIET_S)
        batch = [request for request in self.waiting if request.sampling == sampling]
        self.waiting = [request for request in self.waiting if request.sampling != sampling]
        conversations = [request.conversation for request in batch]
        try:
            answers = await anyio.to_thread.run_sync(self.answerer.answer, conversations, sampling)
        except Exception as error:  # noqa: BLE001 - whatever fails belongs to every request of the batch, not to this one
            for request in batch:
                request.failure = error
            return
        for request, answer in zip(batch, answers, strict=True):
            request.answer = answer

    def sampling(self, config: GenerateConfig) -> Sampling:
        """inspect-ai's settings as ours; where it says nothing, greedy."""
        return Sampling(config.max_tokens or self.default_tokens, config.temperature or 0.0, config.seed or 0)

    def max_connections(self) -> int:
        """As many as there are samples: waiting costs nothing, and the larger the batch the better."""
        return CONNECTIONS

    def retry_wait(self) -> WaitBaseT:
        """No wait: what failed here fails again, and is never tried twice."""
        return wait_none()

    def connection_key(self) -> str:
        """Every model directory has its own queue."""
        return self.model_name


def refuse_unsupported(tools: list[ToolInfo], config: GenerateConfig) -> None:
    """Raises EvaluationError when a request asks for what the provider cannot do."""
    asked = [name for name in UNSUPPORTED if getattr(config, name) is not None] + (["tools"] if tools else [])
    if asked:
        rule = "It has max_tokens, temperature and seed."
        raise EvaluationError(f"The provider dpo does not know {', '.join(asked)}.", rule, "Leave them out.")


def to_message(message: ChatMessage) -> Message:
    """inspect-ai's message as ours, its text only."""
    return {"role": message.role, "content": message.text}


def to_output(model_name: str, answer: Answer) -> ModelOutput:
    """An answer as inspect-ai's, with the true reason of its end and its tokens."""
    return ModelOutput(
        model=model_name,
        choices=[
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=answer.text, model=model_name, source="generate"),
                stop_reason=answer.stop_reason,
            )
        ],
        usage=ModelUsage(
            input_tokens=answer.prompt_tokens,
            output_tokens=answer.tokens,
            total_tokens=answer.prompt_tokens + answer.tokens,
        ),
    )
