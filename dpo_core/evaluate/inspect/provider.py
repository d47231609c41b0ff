"""inspect-ai's way to our models: the provider ``dpo``, as in ``inspect eval … --model dpo/<directory or name>``."""

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
from dpo_core.evaluate.inspect.inspect_errors import told_to_inspect
from dpo_core.inference.generator import Conversation, Response, ResponseGenerator, Sampling, open_generator
from dpo_core.inference.load_engine import EngineConfig
from dpo_core.inference.select_engine import DTYPES
from dpo_core.model.model_lookup import find_model
from dpo_core.render.renderer import Renderer

QUIET_S = 0.03
CONNECTIONS = 4096
DEFAULT = GenerateConfig()

# Settings of a generation that would change answers and that our decoding does not have: refused, not ignored.
UNSUPPORTED = "best_of", "prompt_logprobs", "frequency_penalty", "presence_penalty", "logit_bias", "response_schema"


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One conversation that waits for its answers, as many as ``questions``, or for the failure of one of them."""

    questions: list[Conversation]
    sampling: Sampling
    answers: list[Response | Exception] = field(default_factory=list)


class DPOModel(ModelAPI):
    """A transformers model behind inspect-ai; concurrent requests are decoded together."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = DEFAULT,
        **model_args: Any,
    ) -> None:
        """Open ``model_name``: a directory of weights or of LoRA adapters, a hub id, or a registered model.

        ``-M renderer_name=…``, ``-M batch_size=…`` (default: from memory), ``-M precision=bf16``,
        ``-M engine=torch|paged|vllm`` and ``-M trust_remote_code=true`` as needed.
        ``answerer``, if given, is a model that is open already. Raises Unusable for one that cannot be used.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        given = model_args.pop("answerer", None)
        renderer_name = model_args.pop("renderer_name", None)
        with told_to_inspect():
            how = to_how(model_args)
            self.answerer: ResponseGenerator = given or open_generator(
                find_model(model_name), how, renderer_name, model_name
            )
        # Told here, because inspect-ai would otherwise open the model a second time, in mid-evaluation, to ask for it.
        set_model_info(f"dpo/{model_name}", ModelInfo(context_length=self.answerer.engine.context_length))
        self.waiting: list[PendingRequest] = []
        self.asked: Counter[str] = Counter()
        self.turn = anyio.Lock()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one conversation, together with all that wait by then.

        Whoever's turn it is serves everyone who waits: no task of our own that could outlive the evaluation.
        """
        refuse_unsupported(tools, config)
        sampling = to_sampling(config)
        request = PendingRequest(self.questions([to_message(message) for message in input], sampling, config), sampling)
        self.waiting.append(request)
        async with self.turn:
            if not request.answers:
                await self.serve(request.sampling)
        answers = [answer for answer in request.answers if isinstance(answer, Response)]
        if len(answers) < len(request.questions):
            raise next(answer for answer in request.answers if isinstance(answer, Exception))
        return to_output(self.model_name, answers, self.answerer.renderer)

    def questions(self, messages: list[Message], sampling: Sampling, config: GenerateConfig) -> list[Conversation]:
        """The conversation once for each answer that is wanted; asked again, it is given other draws."""
        key = fingerprint.of_value([messages, str(sampling)])
        first = self.asked[key]
        self.asked[key] += config.num_choices or 1
        return [Conversation(messages, place) for place in range(first, self.asked[key])]

    async def serve(self, sampling: Sampling) -> None:
        """Answer everyone who waits for answers drawn in this way, once no more arrive."""
        count = 0
        while count != len(self.waiting):
            count = len(self.waiting)
            await anyio.sleep(QUIET_S)
        batch = [request for request in self.waiting if request.sampling == sampling]
        self.waiting = [request for request in self.waiting if request.sampling != sampling]
        questions = [question for request in batch for question in request.questions]
        try:
            answers = iter(await anyio.to_thread.run_sync(self.answerer.responses_or_errors, questions, sampling))
        except Exception as error:  # noqa: BLE001 - what fails as a whole belongs to every request, not to this one
            answers = iter([error] * len(questions))
        for request in batch:
            request.answers = [next(answers) for _ in request.questions]

    def max_connections(self) -> int:
        """As many as there are samples: waiting costs nothing, and the larger the batch the better."""
        return CONNECTIONS

    def retry_wait(self) -> WaitBaseT:
        """No wait: what failed here fails again, and is never tried twice."""
        return wait_none()

    def connection_key(self) -> str:
        """Every model has its own queue."""
        return self.model_name


def to_how(given: dict[str, Any]) -> EngineConfig:
    """The provider's own arguments.

    Raises EvaluationError for one that it does not have.
    """
    known = [one.name for one in fields(EngineConfig)]
    if unknown := sorted(given.keys() - set(known)):
        found = f"The provider dpo has no argument {', '.join(unknown)}."
        raise EvaluationError(found, f"It takes renderer_name, {', '.join(known)}.", "Leave out the others.")
    for name, allowed in {"precision": [*DTYPES], "engine": get_args(EngineName)}.items():
        if given.get(name, allowed[0]) not in allowed:
            raise EvaluationError(f"{name}={given[name]} means nothing.", f"It is {' or '.join(allowed)}.", "")
    size = given.get("batch_size")
    return EngineConfig(**given | {"batch_size": int(size) if size else None})


def refuse_unsupported(tools: list[ToolInfo], config: GenerateConfig) -> None:
    """Raises EvaluationError when a request asks for what the provider cannot do."""
    asked = [name for name in UNSUPPORTED if getattr(config, name) is not None] + (["tools"] if tools else [])
    if asked:
        rule = "It has max_tokens, temperature, seed, top_p, top_k, stop_seqs, num_choices and logprobs."
        raise EvaluationError(f"The provider dpo does not know {', '.join(asked)}.", rule, "Leave them out.")


def to_sampling(config: GenerateConfig) -> Sampling:
    """inspect-ai's settings as ours; where it says nothing, greedy."""
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
    """inspect-ai's message as ours, its text only."""
    return {"role": message.role, "content": message.text}


def to_output(model_name: str, answers: Sequence[Response], renderer: Renderer) -> ModelOutput:
    """Answers as inspect-ai's, with the true reason of their ends and their tokens."""
    asked, made = answers[0].prompt_tokens, sum(answer.tokens for answer in answers)
    return ModelOutput(
        model=model_name,
        choices=[
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=answer.text, model=model_name, source="generate"),
                stop_reason=answer.stop_reason,
                logprobs=to_logprobs(answer, renderer) if answer.scores else None,
            )
            for answer in answers
        ],
        usage=ModelUsage(input_tokens=asked, output_tokens=made, total_tokens=asked + made),
    )


def to_logprobs(answer: Response, renderer: Renderer) -> Logprobs:
    """The log-probability of every new token, the end marker included, with the likeliest ones there."""
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
            for token, score in zip(answer.ids, answer.scores, strict=True)
        ]
    )
