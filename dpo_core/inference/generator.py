"""A model that answers: conversations in, answers out, many at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from dpo_core.cache import fingerprint
from dpo_core.data.preference import Message
from dpo_core.errors import DPOError
from dpo_core.inference.decoding import DecodedTokens, Decoding, Finished, own_streams
from dpo_core.inference.load_engine import EngineConfig, open_engine
from dpo_core.inference.response_cache import ResponseCache
from dpo_core.inference.sampling import TokenLogps
from dpo_core.inference.torch_engine import Engine
from dpo_core.model.adapter import whose
from dpo_core.render.registry import get_renderer, resolve_renderer, warn_about_renderer
from dpo_core.render.renderer import Renderer
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.system.progress import Progress

PLAIN = EngineConfig()

StopReason = Literal["stop", "max_tokens", "model_length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy.

    ``stop``: strings that end an answer, beside the renderer's own, and are not part of it. ``logprobs``: how many of
    the likeliest tokens are told beside each token's log-probability; None tells nothing.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


class Conversation(NamedTuple):
    """A conversation to go on with. ``place`` tells one from another with the same messages: they draw differently."""

    messages: Sequence[Message]
    place: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """What the model said. ``tokens`` counts the new ones, the end marker included.

    ``stop_reason``: it ended by itself (stop), was cut off (max_tokens), or filled the model's context (model_length).
    ``ids`` and ``scores`` are the new tokens and, where asked for, how likely each was.
    """

    text: str
    stop_reason: StopReason
    prompt_tokens: int
    tokens: int
    ids: tuple[int, ...] = ()
    scores: tuple[TokenLogps, ...] = ()


@dataclass(frozen=True, slots=True)
class ResponseGenerator:
    """An engine with a model in it, and the model's renderer.

    ``batch_size`` None: as many prompts at a time as memory has room for. ``ledger`` keeps what was said, so that an
    evaluation that was cut off goes on from it.
    """

    engine: Engine
    renderer: Renderer
    batch_size: int | None = None
    ledger: ResponseCache = field(default_factory=ResponseCache)

    def answer(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Response]:
        """The assistant's next message of every conversation, in their order; the first failure is raised."""
        return [sound(one) for one in self.attempt([Conversation(told) for told in conversations], sampling)]

    def answer_ids(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Response]:
        """The assistant's next message after every prompt of token ids, in their order; the first failure is raised."""
        return [sound(one) for one in self.continue_all(prompts, own_streams(prompts), sampling)]

    def attempt(self, questions: Sequence[Conversation], sampling: Sampling) -> list[Response | Exception]:
        """An answer to each, or what kept it from being given: one that fails takes no other with it."""
        prompts = [self.prompt(question) for question in questions]
        asked = [
            (prompt, f"{prompt}/{question.place}")
            for prompt, question in zip(prompts, questions, strict=True)
            if not isinstance(prompt, Exception)
        ]
        answers = iter(self.continue_all([prompt for prompt, _ in asked], [name for _, name in asked], sampling))
        return [prompt if isinstance(prompt, Exception) else next(answers) for prompt in prompts]

    def prompt(self, question: Conversation) -> list[int] | DPOError:
        """A conversation's tokens, or why its format has none for it."""
        try:
            return self.renderer.build_generation_prompt(question.messages)
        except DPOError as error:
            return error

    def continue_all(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str], sampling: Sampling
    ) -> list[Response | Exception]:
        """The answers that the ledger has, and the others generated; a batch that fails is tried again in halves."""
        keys = [fingerprint.of_value([asdict(sampling), name]) for name in names]
        outcomes: dict[int, DecodedTokens | Exception] = {
            place: known for place, key in enumerate(keys) if (known := self.ledger.get(key)) is not None
        }
        progress = Progress("generating", len(prompts), "answers", done=len(outcomes))
        groups = [[place for place in range(len(prompts)) if place not in outcomes]]
        while groups:
            if not (group := [place for place in groups.pop() if place not in outcomes]):
                continue

            def note(index: int, completion: DecodedTokens, group: list[int] = group) -> None:
                outcomes[group[index]] = completion
                self.ledger.add(keys[group[index]], completion)
                progress.advance()

            try:
                asked = [(prompts[place], names[place]) for place in group]
                self.generate(asked, self.decoding(sampling, progress), note)
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to the prompts that fail alone
                if len(group) == 1:
                    outcomes[group[0]] = error
                    progress.advance()
                groups += [group[len(group) // 2 :], group[: len(group) // 2]]
        return [self.read(outcomes[place], prompt, sampling) for place, prompt in enumerate(prompts)]

    def read(
        self, outcome: DecodedTokens | Exception, prompt: Sequence[int], sampling: Sampling
    ) -> Response | Exception:
        """New ids as an answer."""
        if isinstance(outcome, Exception):
            return outcome
        ids, text = outcome.ids, self.renderer.parse_response(outcome.ids).message["content"]
        for stop in sampling.stop:
            text = text.partition(stop)[0]
        cut: StopReason = "max_tokens" if len(ids) >= sampling.max_new_tokens else "model_length"
        return Response(text, "stop" if outcome.ended else cut, len(prompt), len(ids), ids, outcome.scores)

    def generate(self, asked: Sequence[tuple[Sequence[int], str]], decoding: Decoding, finished: Finished) -> None:
        """Continue prompts, each with the name of its stream of draws, and tell of each as it is done."""
        prompts, names = [prompt for prompt, _ in asked], [name for _, name in asked]
        self.engine.generate(prompts, decoding, names, finished)

    def decoding(self, sampling: Sampling, progress: Progress) -> Decoding:
        """How the engine is to draw; it tells of its steps."""
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


def sound(outcome: Response | Exception) -> Response:
    """An answer; raises what kept it from being given."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def open_answerer(
    path: Path, how: EngineConfig = PLAIN, renderer_name: str | None = None, name: str | None = None
) -> ResponseGenerator:
    """The model in a directory, whole or LoRA adapters over the one they name, with the renderer of this name, or else
    the one that fits it. ``name``: what the model is called elsewhere.

    Raises RecipeError for a directory that is no model with a tokenizer, or a renderer that does not fit it, and as
    :func:`dpo_core.inference.load_engine.open_engine` does.
    """
    own = whose(path, name or path.name)
    warn_about_renderer(renderer_name, *own)
    engine, tokenizer_path = open_engine(path, how)
    tokenizer = load_tokenizer(tokenizer_path, how.trust_remote_code)
    return ResponseGenerator(engine, get_renderer(resolve_renderer(renderer_name, *own), tokenizer), how.batch_size)
