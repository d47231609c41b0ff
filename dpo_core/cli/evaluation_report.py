"""Terminal report of evaluation results: metrics, comparison with intervals and p-values, and flipped prompts."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo_core.errors import EvaluationError
from dpo_core.evaluate.metric_names import standard_error, value_names
from dpo_core.evaluate.paired_tests import PairedComparison, compare_paired
from dpo_core.records import Judgement, TaskResult

ANSWERS, OUTCOMES = "answers.jsonl", "outcomes.jsonl"
MAX_TEXT_LENGTH = 600
Lines = list[dict[str, object]]


def print_results(results: Sequence[TaskResult], flips: int, console: Console) -> None:
    """Print one model's results on a task, or two models' compared.

    ``flips``: at most this many flipped prompts are shown in each direction. Raises EvaluationError when two models
    have no score in common.
    """
    first = results[0]
    console.print(f"\n{first.task}: {count_phrase(first.samples, 'sample')}", style="bold", soft_wrap=True)
    for result in results:
        failed = f", {result.failed} failed" if result.failed else ""
        unanswered = sum(line["stop_reason"] == "model_length" and not line["tokens"] for line in read_lines(result))
        failed += (
            f", {count_phrase(unanswered)} without a response: they fill the model's context" if unanswered else ""
        )
        console.print(f"{result.model_name}{failed}: {result.path}", markup=False, soft_wrap=True)
    if len(results) == 1:
        console.print(metrics_table(first))
    else:
        comparisons = compare_results(*results)
        console.print(comparison_table(comparisons, results))
        name, main = next(iter(comparisons.items()))
        console.print(comparison_sentence(name, main, tuple(short_names(results))), markup=False, soft_wrap=True)
    if (first.path / OUTCOMES).is_file():
        console.print(instruction_table(results))
    if len(results) == 2 and flips:
        print_flips(main, results, flips, console)


def read_lines(result: TaskResult, name: str = ANSWERS) -> Lines:
    """The JSON objects of one of a result's JSONL files."""
    return [json.loads(line) for line in (result.path / name).read_text().splitlines()]


def metrics_table(result: TaskResult) -> Table:
    """A table of metrics with their standard errors; metrics of single instructions have their own table."""
    table = empty_table("metric", "value", "standard error")
    for name in value_names(result.metrics):
        if not name.startswith(f"{result.task}/"):
            error = standard_error(result.metrics, name)
            table.add_row(name, f"{result.metrics[name]:.4g}", "" if error is None else f"± {error:.3f}")
    return table


def compare_results(first: TaskResult, second: TaskResult) -> dict[str, PairedComparison]:
    """Every score that both models have, paired by prompt; samples that failed for either are left out.

    Raises EvaluationError when no prompt has a score of both.
    """
    lines, other_lines = ([line for line in read_lines(result) if line["error"] is None] for result in (first, second))
    names = dict.fromkeys(name for line in lines for name in line["values"])  # type: ignore[attr-defined]
    scores = {name: (scores_by_prompt(lines, name), scores_by_prompt(other_lines, name)) for name in names}
    comparisons = {
        name: compare_paired(values, other_values, scores_by_prompt(lines, name, "sizes", 1.0))
        for name, (values, other_values) in scores.items()
        if values.keys() & other_values.keys()
    }
    if not comparisons:
        raise EvaluationError(
            f"{first.task} has no score that both models have on the same prompt.",
            "Two models are compared by their scores.",
            "Evaluate them one at a time, without --against.",
        )
    return comparisons


def scores_by_prompt(lines: Lines, name: str, field: str = "values", default: float | None = None) -> dict[str, float]:
    """One score by prompt id: the mean over the prompt's epochs, since epochs are not independent prompts."""
    values: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        value = line[field].get(name, default)  # type: ignore[attr-defined]
        if value is not None:
            values[str(line["id"])].append(float(value))
    return {key: sum(epochs) / len(epochs) for key, epochs in values.items()}


def comparison_table(comparisons: Mapping[str, PairedComparison], results: Sequence[TaskResult]) -> Table:
    """A table with a row per score: both models, difference with 95 % interval, p, and flipped prompts."""
    models = tuple(short_names(results))
    table = empty_table("score", *models, "difference [95%]", "p", "flips", models=models)
    for name, paired in comparisons.items():
        difference = f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
        flips = f"+{len(paired.gained)} −{len(paired.lost)}"
        table.add_row(name, f"{paired.first:.3f}", f"{paired.second:.3f}", Text(difference), f"{paired.p:.2g}", flips)
    return table


def comparison_sentence(name: str, paired: PairedComparison, models: Sequence[str]) -> str:
    """The comparison of one score as a sentence. ``models``: the two models' short names."""
    first, second = models
    verdict = f"{first if paired.difference > 0 else second} is {'better' if paired.are_shares else 'higher'}"
    if paired.p >= 0.05:
        verdict = "No significant difference"
    value, other = (f"{mean:.1%}" if paired.are_shares else f"{mean:.4g}" for mean in (paired.first, paired.second))
    test = "exact McNemar" if paired.is_binary else "sign test,"
    evidence = f"{count_phrase(len(paired.gained))} gained and {len(paired.lost)} lost, {test} p = {paired.p:.2g}"
    return f"{verdict}: {name} {value} against {other} of {count_phrase(paired.prompts)}, {evidence}."


def count_phrase(number: int, noun: str = "prompt") -> str:
    """A number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def instruction_table(results: Sequence[TaskResult]) -> Table:
    """A table of IFEval's instruction types: how often each occurs, and each model's share followed strictly."""
    verdicts = [strict_verdicts(result) for result in results]
    models = tuple(short_names(results))
    table = empty_table("instruction", "count", *models, models=models)
    for name in sorted(verdicts[0]):
        columns = [followed.get(name, []) for followed in verdicts]
        cells = [f"{sum(followed) / len(followed):.3f}" if followed else "" for followed in columns]
        table.add_row(name, str(len(columns[0])), *cells)
    return table


def strict_verdicts(result: TaskResult) -> dict[str, list[bool]]:
    """Strict verdicts by instruction type, over the prompts that were scored."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for line in read_lines(result, OUTCOMES):
        if line["error"] is None:
            for name, followed in zip(line["instruction_id_list"], line["strict"], strict=True):  # type: ignore[call-overload]
                verdicts[name].append(followed)
    return verdicts


def print_flips(paired: PairedComparison, results: Sequence[TaskResult], limit: int, console: Console) -> None:
    """Print prompts on which the models differ, with both responses side by side; ``limit`` in each direction."""
    lines, other_lines = ({str(line["id"]): line for line in reversed(read_lines(result))} for result in results)
    for title, keys in (("better", paired.gained), ("worse", paired.lost)):
        if not keys:
            continue
        excerpt = "" if len(keys) <= limit else f", of which {limit}"
        heading = f"\n{next(short_names(results))} is {title} on {count_phrase(len(keys))}{excerpt}:"
        console.print(Text(heading), style="bold", soft_wrap=True)
        for key in keys[:limit]:
            prompt = Text(shorten(lines[key]["prompt"]))
            table = Table(*short_names(results), title=prompt, title_justify="left", expand=True)
            table.add_row(Text(shorten(lines[key]["response"])), Text(shorten(other_lines[key]["response"])))
            console.print(table)


def shorten(text: object) -> str:
    """A text cut to MAX_TEXT_LENGTH characters."""
    stripped = str(text).strip()
    return stripped if len(stripped) <= MAX_TEXT_LENGTH else f"{stripped[:MAX_TEXT_LENGTH]} …"


def print_judgement(judgement: Judgement, results: Sequence[TaskResult], console: Console) -> None:
    """Print the first model's win rate against the second by a judge."""
    first, second = (result.model_name for result in results)
    for line in (
        f"\n{judgement.judge}: {first} wins {judgement.win_rate:.1%} of {judgement.prompts} prompts against {second}"
        f" (95% interval {judgement.low:.1%} to {judgement.high:.1%}, ties count half):",
        f"{judgement.wins} wins, {judgement.ties} ties, {judgement.losses} losses, sign test p = {judgement.p:.2g};"
        f" the judge is consistent in both orders on {judgement.consistent:.0%} of prompts.",
        f"{judgement.path}",
    ):
        console.print(line, markup=False, soft_wrap=True)


def short_names(results: Sequence[TaskResult]) -> Iterator[str]:
    """The shortest path suffixes of the models' names that differ."""
    paths = [result.model_name.removeprefix("models:/").rstrip("/").split("/") for result in results]
    depth = 1
    while len(paths) == 2 and paths[0][-depth:] == paths[1][-depth:] and depth < max(map(len, paths)):
        depth += 1
    yield from ("/".join(path[-depth:]) for path in paths)


def empty_table(first: str, *others: str, models: Collection[str] = ()) -> Table:
    """An empty table with the first column left-aligned and the others right-aligned; models' long names wrap."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(Text(first), no_wrap=True)
    for name in others:
        wraps = name in models
        table.add_column(Text(name), justify="right", no_wrap=not wraps, overflow="fold", min_width=5)
    return table
