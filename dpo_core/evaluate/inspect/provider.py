"""Model provider ``dpo`` for inspect-ai: ``inspect eval … --model dpo/<directory or name>``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_args

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelInfo,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    set_model_info,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from tenacity.wait import WaitBaseT, wait_none

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import EngineName, EvaluateSettings
from dpo_core.data.preference import Message
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.inspect.inspect_errors import wrap_errors
from dpo_core.inference.generator import Conversation, Response, ResponseGenerator, Sampling, open_generator
from dpo_core.inference.load_engine import EngineConfig
from dpo_core.inference.select_engine import DTYPES
from dpo_core.model.model_lookup import find_model
from dpo_core.render.renderer import Renderer

QUIET_S = 0.03
CONNECTIONS = 4096
DEFAULT = GenerateConfig()

# Generation settings that would change responses and that the engines do not have: rejected, not ignored.
UNSUPPORTED = "best_of", "prompt_logprobs", "frequency_penalty", "presence_penalty", "logit_bias", "response_schema"


@dataclass(eq=False, slots=True)
class PendingRequest:
    """A request that waits for its responses, one for each of ``conversations``, or an exception instead of one."""

    conversations: list[Conversation]
    sampling: Sampling
    responses: list[Response | Exception] = field(default_factory=list)


class DPOModel(ModelAPI):
    """A transformers model as an inspect-ai model; concurrent requests are generated in one batch."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = DEFAULT,
        **model_args: Any,
    ) -> None:
        """Load ``model_name``: a directory of weights or of LoRA adapters, a hub id, or a registered model.

        ``-M renderer_name=…``, ``-M batch_size=…`` (default: what fits into memory), ``-M precision=bf16``,
        ``-M engine=torch|paged|vllm`` and ``-M trust_remote_code=true`` as needed.
        ``generator``: a model that is already loaded, used instead of ``model_name``. Raises InspectPrerequisiteError
        for a model or argument that cannot be used.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        generator = model_args.pop("generator", None)
        renderer_name = model_args.pop("renderer_name", None)
        with wrap_errors():
            engine_config = to_engine_config(model_args)
            self.generator: ResponseGenerator = generator or open_generator(
                find_model(model_name), engine_config, renderer_name, model_name
            )
        # Without this, inspect-ai would load the model again during the evaluation to find its context length.
        set_model_info(f"dpo/{model_name}", ModelInfo(context_length=self.generator.engine.context_length))
        self.pending: list[PendingRequest] = []
        self.request_counts: Counter[str] = Counter()
        self.generation_lock = anyio.Lock()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Generate the responses to one conversation, in a batch with the other pending requests.

        The request that holds the lock generates for all: there is no background task that could outlive the
        evaluation. Raises EvaluationError for unsupported settings, and the exception of a failed generation.
        """
        refuse_unsupported(tools, config)
        sampling = to_sampling(config)
        request = PendingRequest(
            self.conversations([to_message(message) for message in input], sampling, config), sampling
        )
        self.pending.append(request)
        async with self.generation_lock:
            if not request.responses:
                await self.generate_pending(request.sampling)
        responses = [response for response in request.responses if isinstance(response, Response)]
        if len(responses) < len(request.conversations):
            raise next(response for response in request.responses if isinstance(response, Exception))
        return to_output(self.model_name, responses, self.generator.renderer)

    def conversations(self, messages: list[Message], sampling: Sampling, config: GenerateConfig) -> list[Conversation]:
        """The conversation once per requested response; a repeated request gets new random draws."""
        key = fingerprint.of_value([messages, str(sampling)])
        first = self.request_counts[key]
        self.request_counts[key] += config.num_choices or 1
        return [Conversation(messages, index) for index in range(first, self.request_counts[key])]

    async def generate_pending(self, sampling: Sampling) -> None:
        """Generate the responses of all pending requests with this sampling, once no new request arrives."""
        count = 0
        while count != len(self.pending):
            count = len(self.pending)
            await anyio.sleep(QUIET_S)
        batch = [request for request in self.pending if request.sampling == sampling]
        self.pending = [request for request in self.pending if request.sampling != sampling]
        conversations = [conversation for request in batch for conversation in request.conversations]
        try:
            responses = iter(
                await anyio.to_thread.run_sync(self.generator.responses_or_errors, conversations, sampling)
            )
        except Exception as error:  # noqa: BLE001 - a failure of the batch belongs to each of its requests
            responses = iter([error] * len(conversations))
        for request in batch:
            request.responses = [next(responses) for _ in request.conversations]

    def max_connections(self) -> int:
        """More than any task's samples: a pending request costs nothing, and a larger batch is faster."""
        return CONNECTIONS

    def retry_wait(self) -> WaitBaseT:
        """No wait: a generation that failed here would fail again."""
        return wait_none()

    def connection_key(self) -> str:
        """One connection limit per model."""
        return self.model_name


def to_engine_config(arguments: dict[str, Any]) -> EngineConfig:
    """The provider's arguments (``-M name=value``) as an EngineConfig.

    Raises EvaluationError for an unknown argument or value.
    """
    names = [field.name for field in fields(EngineConfig)]
    if unknown := sorted(arguments.keys() - set(names)):
        found = f"The provider dpo has no argument {', '.join(unknown)}."
        raise EvaluationError(found, f"It takes renderer_name, {', '.join(names)}.", "Leave it out.")
    for name, allowed in {"precision": [*DTYPES], "engine": get_args(EngineName)}.items():
        if arguments.get(name, allowed[0]) not in allowed:
            raise EvaluationError(f"{name}={arguments[name]} is unknown.", f"It is {' or '.join(allowed)}.", "")
    size = arguments.get("batch_size")
    return EngineConfig(**arguments | {"batch_size": int(size) if size else None})


def refuse_unsupported(tools: list[ToolInfo], config: GenerateConfig) -> None:
    """Raises EvaluationError when a request has settings or tools that the provider does not support."""
    unsupported = [name for name in UNSUPPORTED if getattr(config, name) is not None] + (["tools"] if tools else [])
    if unsupported:
        rule = "It supports max_tokens, temperature, seed, top_p, top_k, stop_seqs, num_choices and logprobs."
        raise EvaluationError(f"The provider dpo does not support {', '.join(unsupported)}.", rule, "Leave them out.")


def to_sampling(config: GenerateConfig) -> Sampling:
    """inspect-ai's generation settings as Sampling; greedy by default."""
    return Sampling(
        config.max_tokens or EvaluateSettings().max_new_tokens,
        config.temperature or 0.0,
        config.seed or 0,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=tuple(config.stop_seqs or ()),
        logprobs=(config.top_logprobs or 0) if config.logprobs or config.top_logprobs else None,
    )


def to_message(message: ChatMessage) -> Message:
    """The role and text of an inspect-ai message."""
    return {"role": message.role, "content": message.text}


def to_output(model_name: str, responses: Sequence[Response], renderer: Renderer) -> ModelOutput:
    """Responses to one prompt as inspect-ai's output, with stop reasons and token counts."""
    input_tokens, output_tokens = responses[0].prompt_tokens, sum(response.tokens for response in responses)
    return ModelOutput(
        model=model_name,
        choices=[
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=response.text, model=model_name, source="generate"),
                stop_reason=response.stop_reason,
                logprobs=to_logprobs(response, renderer) if response.scores else None,
            )
            for response in responses
        ],
        usage=ModelUsage(
            input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=input_tokens + output_tokens
        ),
    )


def to_logprobs(response: Response, renderer: Renderer) -> Logprobs:
    """Log-probability of every new token, the end marker included, with the likeliest alternatives at its position."""
    tokenizer = renderer.tokenizer

    def name(token: int) -> str:
        return str(tokenizer.convert_ids_to_tokens(token))

    return Logprobs(
        content=[
            Logprob(
                token=name(token),
                logprob=score.logp,
                top_logprobs=[TopLogprob(token=name(other), logprob=logp) for other, logp in score.top] or None,
            )
            for token, score in zip(response.ids, response.scores, strict=True)
        ]
    )
