"""Results of samples and IFEval prompts, and metrics that the official ones lack: by instruction type, stops, loops."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from inspect_ai.log import EvalSample
from inspect_ai.scorer import Score, value_to_float

from dpo_core.evaluate.ifeval.ifeval_checkers import ROW
from dpo_core.records import Record

LONGEST_CYCLE = 32
SHORTEST_LOOP = 8


class PromptResult(Record):
    """An IFEval prompt, the response, and its verdicts by instruction: all false when ``error`` prevented scoring."""

    key: int
    prompt: str
    instruction_id_list: list[str]
    response: str
    strict: list[bool]
    loose: list[bool]
    stop_reason: str
    tokens: int
    error: str | None = None


def to_prompt_result(sample: EvalSample) -> PromptResult:
    """Convert a sample of inspect-ai's IFEval log."""
    row = ROW.validate_python(sample.metadata["row"])
    unscored = [False] * len(row.instruction_id_list)
    verdict = next((score.metadata or {} for score in (sample.scores or {}).values()), {})
    usage = sample.output.usage
    return PromptResult(
        key=row.key,
        prompt=row.prompt,
        instruction_id_list=row.instruction_id_list,
        response=sample.output.completion,
        strict=verdict.get("strict", unscored),
        loose=verdict.get("loose", unscored),
        stop_reason=stop_reason(sample),
        tokens=usage.output_tokens if usage else 0,
        error=sample.error.message if sample.error else None,
    )


def stop_reason(sample: EvalSample) -> str:
    """Why the response ended; ``error`` for a failed sample, whose output has no choices."""
    return sample.output.stop_reason if sample.output.choices else "error"


def response_metrics(outcomes: Sequence[PromptResult]) -> dict[str, float]:
    """Metrics over the prompts that were scored: shares by instruction type, and signs of degenerate responses.

    ``ifeval/<type>``: share of the type's instructions followed strictly. ``ended_share``: responses that ended by
    themselves. ``loop_share``: responses with a loop, see :func:`has_loop`. ``no_room_share``: prompts that fill the
    model's context, and so get no response. ``answer_tokens``: mean response length in tokens.
    """
    scored = [outcome for outcome in outcomes if outcome.error is None]
    followed: dict[str, list[bool]] = defaultdict(list)
    for outcome in scored:
        for name, strict in zip(outcome.instruction_id_list, outcome.strict, strict=True):
            followed[f"ifeval/{name.rpartition(':')[2]}"].append(strict)
    return {
        "ended_share": mean([outcome.stop_reason == "stop" for outcome in scored]),
        "loop_share": mean([has_loop(outcome.response) for outcome in scored]),
        "no_room_share": mean([fills_context(outcome) for outcome in scored]),
        "answer_tokens": mean([outcome.tokens for outcome in scored]),
        **{name: mean(values) for name, values in sorted(followed.items())},
    }


def fills_context(outcome: PromptResult) -> bool:
    """Whether the prompt fills the model's context, so that there is no response."""
    return outcome.stop_reason == "model_length" and outcome.tokens == 0


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)


def has_loop(text: str) -> bool:
    """Whether a sequence of 1 to 32 words occurs three times or more in a row, over eight words or more.

    The minimum of eight words leaves out emphasis, as in "very, very, very".
    """
    words = text.split()
    return any(longest_repeat(words, lag) >= max(2 * lag, SHORTEST_LOOP - lag) for lag in range(1, LONGEST_CYCLE + 1))


def longest_repeat(words: Sequence[str], lag: int) -> int:
    """Length of the longest run of words that equal the word ``lag`` words before them."""
    longest = run = 0
    for before, word in zip(words, words[lag:], strict=False):
        run = run + 1 if word == before else 0
        longest = max(longest, run)
    return longest


class SampleResult(Record):
    """One sample of any task: prompt, response, and each score as a number.

    ``epoch``: inspect-ai's epoch, from 1. ``sizes``: number of summed items, of the scores that are sums. ``error``:
    why the sample was not scored.
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


def to_sample_result(sample: EvalSample) -> SampleResult:
    """Convert a sample of inspect-ai's log; its letter scores become 1 (C, correct), 0.5 (P, partial) or 0."""
    usage = sample.output.usage
    values = {
        name: value for scorer, score in (sample.scores or {}).items() for name, value in score_values(scorer, score)
    }
    return SampleResult(
        id=str(sample.id),
        epoch=sample.epoch,
        prompt=sample.input if isinstance(sample.input, str) else "\n\n".join(message.text for message in sample.input),
        response=sample.output.completion,
        values=values,
        sizes={},
        stop_reason=stop_reason(sample),
        tokens=usage.output_tokens if usage else 0,
        error=sample.error.message if sample.error else None,
    )


def score_values(scorer: str, score: Score) -> Iterator[tuple[str, float]]:
    """A score's values as numbers: a single value by the scorer's name, several by their own names."""
    if isinstance(score.value, dict):
        yield from ((name, TO_NUMBER(value)) for name, value in score.value.items() if value is not None)
    elif not isinstance(score.value, list):
        yield scorer, TO_NUMBER(score.value)


def prompt_to_sample_result(outcome: PromptResult) -> SampleResult:
    """An IFEval prompt as a SampleResult, scored by prompt and by instructions, strict and loose."""
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
