"""What came of every prompt, and the shares that the official metrics do not show: types, clean ends, loops."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from inspect_ai.log import EvalSample
from inspect_ai.scorer import Score, value_to_float

from dpo_core.evaluate.ifeval.ifeval_checkers import ROW
from dpo_core.records import Record

LONGEST_CYCLE = 32
SHORTEST_LOOP = 8


class PromptResult(Record):
    """One prompt, its answer, and which instructions it followed: none, where ``error`` kept it from being judged."""

    key: int
    prompt: str
    instruction_id_list: list[str]
    response: str
    strict: list[bool]
    loose: list[bool]
    stop_reason: str
    tokens: int
    error: str | None = None


def to_outcome(sample: EvalSample) -> PromptResult:
    """A sample of inspect-ai's log as an outcome."""
    row = ROW.validate_python(sample.metadata["row"])
    unjudged = [False] * len(row.instruction_id_list)
    verdict = next((score.metadata or {} for score in (sample.scores or {}).values()), {})
    usage = sample.output.usage
    return PromptResult(
        key=row.key,
        prompt=row.prompt,
        instruction_id_list=row.instruction_id_list,
        response=sample.output.completion,
        strict=verdict.get("strict", unjudged),
        loose=verdict.get("loose", unjudged),
        stop_reason=stop_reason(sample),
        tokens=usage.output_tokens if usage else 0,
        error=sample.error.message if sample.error else None,
    )


def stop_reason(sample: EvalSample) -> str:
    """Why an answer ended; one that failed has no choices to say it."""
    return sample.output.stop_reason if sample.output.choices else "error"


def shares(outcomes: Sequence[PromptResult]) -> dict[str, float]:
    """Over the prompts that were judged: strict shares of each instruction type, and signs of degenerate answers.

    ``ifeval/<type>``: instructions of the type followed strictly. ``ended_share``: answers that ended by themselves.
    ``loop_share``: answers that loop, see :func:`loops`. ``no_room_share``: prompts that fill the
    model's context, and so get no answer. ``answer_tokens``: mean length, in tokens.
    """
    judged = [outcome for outcome in outcomes if outcome.error is None]
    followed: dict[str, list[bool]] = defaultdict(list)
    for outcome in judged:
        for name, strict in zip(outcome.instruction_id_list, outcome.strict, strict=True):
            followed[f"ifeval/{name.rpartition(':')[2]}"].append(strict)
    return {
        "ended_share": mean([outcome.stop_reason == "stop" for outcome in judged]),
        "loop_share": mean([loops(outcome.response) for outcome in judged]),
        "no_room_share": mean([without_room(outcome) for outcome in judged]),
        "answer_tokens": mean([outcome.tokens for outcome in judged]),
        **{name: mean(values) for name, values in sorted(followed.items())},
    }


def without_room(answer: PromptResult) -> bool:
    """Whether the prompt left no room for an answer in the model's context."""
    return answer.stop_reason == "model_length" and answer.tokens == 0


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)


def loops(text: str) -> bool:
    """Whether some sequence of 1 to 32 words stands three times or more in a row, over eight words or more.

    "very, very, very" is emphasis, eight words that go in a circle are not.
    """
    words = text.split()
    return any(longest_echo(words, lag) >= max(2 * lag, SHORTEST_LOOP - lag) for lag in range(1, LONGEST_CYCLE + 1))


def longest_echo(words: Sequence[str], lag: int) -> int:
    """How many successive words at most equal the word ``lag`` places before them."""
    longest = run = 0
    for before, word in zip(words, words[lag:], strict=False):
        run = run + 1 if word == before else 0
        longest = max(longest, run)
    return longest


class SampleResult(Record):
    """One sample of any task: what was asked and answered, and each score of it as a number.

    ``epoch``: which time it was asked, from 1. ``sizes``: of scores that are sums, how many were summed. ``error`` kept
    it from being judged.
    """

    id: str
    epoch: int = 1
    prompt: str
    response: str
    values: dict[str, float]
    sizes: dict[str, float]
    stop_reason: str
    tokens: int
    error: str | None = None


TO_NUMBER = value_to_float()


def to_sampled(sample: EvalSample) -> SampleResult:
    """A sample of inspect-ai's log as one of ours; scores that are no numbers count as 1 (C, correct), ½ (P), or 0."""
    usage = sample.output.usage
    values = {name: value for scorer, score in (sample.scores or {}).items() for name, value in numbers(scorer, score)}
    return SampleResult(
        id=str(sample.id),
        epoch=sample.epoch,
        prompt=sample.input if isinstance(sample.input, str) else "\n\n".join(one.text for one in sample.input),
        response=sample.output.completion,
        values=values,
        sizes={},
        stop_reason=stop_reason(sample),
        tokens=usage.output_tokens if usage else 0,
        error=sample.error.message if sample.error else None,
    )


def numbers(scorer: str, score: Score) -> Iterator[tuple[str, float]]:
    """A score's values as numbers, by the scorer's name or, of several, by their own."""
    if isinstance(score.value, dict):
        yield from ((name, TO_NUMBER(value)) for name, value in score.value.items() if value is not None)
    elif not isinstance(score.value, list):
        yield scorer, TO_NUMBER(score.value)


def judged(outcome: PromptResult) -> SampleResult:
    """A prompt of IFEval as a sample: prompts and instructions followed, strictly and loosely."""
    count = float(len(outcome.strict))
    values = {
        "prompt_strict": float(all(outcome.strict)),
        "inst_strict": float(sum(outcome.strict)),
        "prompt_loose": float(all(outcome.loose)),
        "inst_loose": float(sum(outcome.loose)),
    }
    return SampleResult(
        id=str(outcome.key),
        prompt=outcome.prompt,
        response=outcome.response,
        values=values if outcome.error is None else {},
        sizes={"inst_strict": count, "inst_loose": count},
        stop_reason=outcome.stop_reason,
        tokens=outcome.tokens,
        error=outcome.error,
    )
