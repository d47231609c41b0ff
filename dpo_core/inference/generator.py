"""Response generator: an engine with a model and the model's renderer, from conversations to responses in batches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from dpo_core.cache import fingerprint
from dpo_core.data.preference import Message
from dpo_core.errors import DPOError
from dpo_core.inference.decoding import DecodedTokens, Decoding, OnFinished, default_streams
from dpo_core.inference.load_engine import EngineConfig, open_engine
from dpo_core.inference.response_cache import ResponseCache
from dpo_core.inference.sampling import TokenLogps
from dpo_core.inference.torch_engine import Engine
from dpo_core.model.adapter import renderer_source
from dpo_core.render.registry import get_renderer, resolve_renderer, warn_about_renderer
from dpo_core.render.renderer import Renderer
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.system.progress import Progress

DEFAULT_CONFIG = EngineConfig()

StopReason = Literal["stop", "max_tokens", "model_length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled; temperature 0 is greedy.

    ``stop``: strings that end a response, beside the renderer's own; they are not part of the response.
    ``logprobs``: number of likeliest tokens scored beside each new token; None scores no token.
    The field names are part of the response cache's keys.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


class Conversation(NamedTuple):
    """Messages to respond to. ``draw_index`` gives equal conversations different random draws."""

    messages: Sequence[Message]
    draw_index: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """The text that the model generated. ``tokens`` counts the completion's tokens, the end marker included.

    ``stop_reason``: an end marker or stop string (stop), ``max_new_tokens`` (max_tokens), or a full context
    (model_length). ``ids``: the completion's token ids. ``scores``: their log-probabilities, empty unless requested.
    """

    text: str
    stop_reason: StopReason
    prompt_tokens: int
    tokens: int
    ids: tuple[int, ...] = ()
    scores: tuple[TokenLogps, ...] = ()


@dataclass(frozen=True, slots=True)
class ResponseGenerator:
    """An engine with a loaded model, and the model's renderer.

    ``batch_size`` None: as many prompts at a time as fit into memory. ``cache`` keeps finished completions, so that an
    interrupted evaluation continues from them.
    """

    engine: Engine
    renderer: Renderer
    batch_size: int | None = None
    cache: ResponseCache = field(default_factory=ResponseCache)

    def responses(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Response]:
        """The assistant's next message of every conversation, in order. Raises the first prompt's failure."""
        outcomes = self.responses_or_errors([Conversation(messages) for messages in conversations], sampling)
        return [response_or_raise(outcome) for outcome in outcomes]

    def responses_to_ids(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Response]:
        """The response to every prompt of token ids, in order. Raises the first prompt's failure."""
        outcomes = self.complete_prompts(prompts, default_streams(prompts), sampling)
        return [response_or_raise(outcome) for outcome in outcomes]

    def responses_or_errors(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> list[Response | Exception]:
        """A response or the error of every conversation, in order; a failure does not affect the others."""
        prompts = [self.encode_prompt(conversation) for conversation in conversations]
        encoded = [
            (prompt, f"{prompt}/{conversation.draw_index}")
            for prompt, conversation in zip(prompts, conversations, strict=True)
            if not isinstance(prompt, Exception)
        ]
        outcomes = iter(
            self.complete_prompts([prompt for prompt, _ in encoded], [stream for _, stream in encoded], sampling)
        )
        return [prompt if isinstance(prompt, Exception) else next(outcomes) for prompt in prompts]

    def encode_prompt(self, conversation: Conversation) -> list[int] | DPOError:
        """A conversation's prompt ids, or the error of a chat format that cannot render it."""
        try:
            return self.renderer.build_generation_prompt(conversation.messages)
        except DPOError as error:
            return error

    def complete_prompts(
        self, prompts: Sequence[Sequence[int]], streams: Sequence[str], sampling: Sampling
    ) -> list[Response | Exception]:
        """A response or error for every prompt: from the cache, or generated. A failed batch is retried in halves."""
        keys = [fingerprint.of_value([asdict(sampling), stream]) for stream in streams]
        outcomes: dict[int, DecodedTokens | Exception] = {
            index: completion for index, key in enumerate(keys) if (completion := self.cache.get(key)) is not None
        }
        progress = Progress("generating", len(prompts), "responses", done=len(outcomes))
        groups = [[index for index in range(len(prompts)) if index not in outcomes]]
        while groups:
            if not (group := [index for index in groups.pop() if index not in outcomes]):
                continue

            def on_finished(position: int, completion: DecodedTokens, group: list[int] = group) -> None:
                outcomes[group[position]] = completion
                self.cache.add(keys[group[position]], completion)
                progress.advance()

            try:
                batch = [(prompts[index], streams[index]) for index in group]
                self.run_engine(batch, self.to_decoding(sampling, progress), on_finished)
            except Exception as error:  # noqa: BLE001 - any error belongs to the prompts that fail alone
                if len(group) == 1:
                    outcomes[group[0]] = error
                    progress.advance()
                groups += [group[len(group) // 2 :], group[: len(group) // 2]]
        return [self.to_response(outcomes[index], prompt, sampling) for index, prompt in enumerate(prompts)]

    def to_response(
        self, outcome: DecodedTokens | Exception, prompt: Sequence[int], sampling: Sampling
    ) -> Response | Exception:
        """The response that a completion decodes to; an error is returned as it is."""
        if isinstance(outcome, Exception):
            return outcome
        ids, text = outcome.ids, self.renderer.parse_response(outcome.ids).message["content"]
        for stop in sampling.stop:
            text = text.partition(stop)[0]
        limit: StopReason = "max_tokens" if len(ids) >= sampling.max_new_tokens else "model_length"
        return Response(text, "stop" if outcome.ended else limit, len(prompt), len(ids), ids, outcome.scores)

    def run_engine(
        self, batch: Sequence[tuple[Sequence[int], str]], decoding: Decoding, on_finished: OnFinished
    ) -> None:
        """Complete prompts, each with the name of its random stream; ``on_finished`` gets each completion."""
        self.engine.generate([prompt for prompt, _ in batch], decoding, [stream for _, stream in batch], on_finished)

    def to_decoding(self, sampling: Sampling, progress: Progress) -> Decoding:
        """The engine's settings: the sampling, the renderer's ends, and ``progress`` called at each step."""
        return Decoding(
            max_new_tokens=sampling.max_new_tokens,
            stop_token_ids=self.renderer.stop_token_ids,
            stop_strings=(*self.renderer.stop_strings, *sampling.stop),
            tokenizer=self.renderer.tokenizer,
            batch_size=self.batch_size,
            temperature=sampling.temperature,
            seed=sampling.seed,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            logprobs=sampling.logprobs,
            on_step=progress.beat,
        )


def response_or_raise(outcome: Response | Exception) -> Response:
    """The response. Raises the error if it is one."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def open_generator(
    path: Path, config: EngineConfig = DEFAULT_CONFIG, renderer_name: str | None = None, name: str | None = None
) -> ResponseGenerator:
    """The model in a directory (full weights, or LoRA adapters over their base) with its renderer.

    ``renderer_name`` None: the renderer that fits the model. ``name``: the model's hub id or registered name, if any.

    Raises RecipeError for a directory that is no model with a tokenizer, or a renderer that does not fit it, and as
    :func:`dpo_core.inference.load_engine.open_engine` does.
    """
    source = renderer_source(path, name or path.name)
    warn_about_renderer(renderer_name, *source)
    engine, tokenizer_path = open_engine(path, config)
    tokenizer = load_tokenizer(tokenizer_path, config.trust_remote_code)
    return ResponseGenerator(
        engine, get_renderer(resolve_renderer(renderer_name, *source), tokenizer), config.batch_size
    )
