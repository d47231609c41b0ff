"""What one or two models' answers came to, on a terminal: tables, intervals, and the prompts that flipped."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo_core.errors import EvaluationError
from dpo_core.evaluate.metric_names import measured, standard_error
from dpo_core.evaluate.paired_tests import Paired, compare
from dpo_core.records import Judgement, TaskResult

ANSWERS, OUTCOMES = "answers.jsonl", "outcomes.jsonl"
LONGEST_SHOWN = 600
Lines = list[dict[str, object]]


def show(results: Sequence[TaskResult], most: int, console: Console) -> None:
    """One model's results, or the first one's against the second's with ``most`` prompts that flipped each way."""
    first = results[0]
    console.print(f"\n{first.task}: {counted(first.samples, 'sample')}", style="bold", soft_wrap=True)
    for result in results:
        failed = f", {result.failed} failed" if result.failed else ""
        full = sum(line["stop_reason"] == "model_length" and not line["tokens"] for line in read(result))
        failed += f", {counted(full)} without an answer: they fill the model's context" if full else ""
        console.print(f"{result.model_name}{failed}: {result.path}", markup=False, soft_wrap=True)
    if len(results) == 1:
        console.print(metrics_table(first))
    else:
        compared = comparisons(*results)
        console.print(comparison_table(compared, results))
        name, main = next(iter(compared.items()))
        console.print(sentence(name, main, tuple(names(results))), markup=False, soft_wrap=True)
    if (first.path / OUTCOMES).is_file():
        console.print(instruction_table(results))
    if len(results) == 2 and most:
        show_flips(main, results, most, console)


def read(result: TaskResult, name: str = ANSWERS) -> Lines:
    """The lines of one of a result's files."""
    return [json.loads(line) for line in (result.path / name).read_text().splitlines()]


def metrics_table(result: TaskResult) -> Table:
    """Every metric that is not an instruction's, with its standard error where it has one."""
    table = columns("metric", "value", "standard error")
    for name in measured(result.metrics):
        if not name.startswith(f"{result.task}/"):
            error = standard_error(result.metrics, name)
            table.add_row(name, f"{result.metrics[name]:.4g}", "" if error is None else f"± {error:.3f}")
    return table


def comparisons(ours: TaskResult, theirs: TaskResult) -> dict[str, Paired]:
    """Every score that both have, paired by prompt; samples that failed for either are left out."""
    one, other = ([line for line in read(result) if line["error"] is None] for result in (ours, theirs))
    names = dict.fromkeys(name for line in one for name in line["values"])  # type: ignore[attr-defined]
    compared = {
        name: compare(scores(one, name), scores(other, name), scores(one, name, "sizes", 1.0))
        for name in names
        if scores(one, name).keys() & scores(other, name).keys()
    }
    if not compared:
        raise EvaluationError(
            f"{ours.task} gives no score that both models have of one prompt.",
            "Two models are compared by their scores.",
            "Measure them one at a time, without --against.",
        )
    return compared


def scores(lines: Lines, name: str, field: str = "values", default: float | None = None) -> dict[str, float]:
    """One score of every prompt that has it: the mean of the times it was asked, which are no prompts of their own."""
    told: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        value = line[field].get(name, default)  # type: ignore[attr-defined]
        if value is not None:
            told[str(line["id"])].append(float(value))
    return {key: sum(values) / len(values) for key, values in told.items()}


def comparison_table(compared: Mapping[str, Paired], results: Sequence[TaskResult]) -> Table:
    """Measure by measure: both models, the difference with its interval, p, and the prompts that flipped."""
    models = tuple(names(results))
    table = columns("measure", *models, "difference [95%]", "p", "flips", models=models)
    for name, told in compared.items():
        difference = f"{told.difference:+.3f} [{told.low:+.3f}, {told.high:+.3f}]"
        flips = f"+{len(told.gained)} −{len(told.lost)}"
        table.add_row(name, f"{told.ours:.3f}", f"{told.theirs:.3f}", Text(difference), f"{told.p:.2g}", flips)
    return table


def sentence(name: str, told: Paired, models: Sequence[str]) -> str:
    """The main measure in words."""
    first, second = models
    what = f"{first if told.difference > 0 else second} is {'better' if told.are_shares else 'higher'}"
    if told.p >= 0.05:
        what = "The evidence does not tell them apart"
    ours, theirs = (f"{value:.1%}" if told.are_shares else f"{value:.4g}" for value in (told.ours, told.theirs))
    test = "exact McNemar" if told.is_binary else "sign test,"
    evidence = f"{counted(len(told.gained))} gained and {len(told.lost)} lost, {test} p = {told.p:.2g}"
    return f"{what}: {name} {ours} against {theirs} of {counted(told.prompts)}, {evidence}."


def counted(number: int, what: str = "prompt") -> str:
    """So many of something."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def instruction_table(results: Sequence[TaskResult]) -> Table:
    """How many instructions of each type were followed strictly."""
    counted = [by_instruction(result) for result in results]
    models = tuple(names(results))
    table = columns("instruction", "asked", *models, models=models)
    for name in sorted(counted[0]):
        shares = [told.get(name, []) for told in counted]
        cells = [f"{sum(marks) / len(marks):.3f}" if marks else "" for marks in shares]
        table.add_row(name, str(len(shares[0])), *cells)
    return table


def by_instruction(result: TaskResult) -> dict[str, list[bool]]:
    """The strict verdicts on every type of instruction."""
    marks: dict[str, list[bool]] = defaultdict(list)
    for line in read(result, OUTCOMES):
        if line["error"] is None:
            for name, mark in zip(line["instruction_id_list"], line["strict"], strict=True):  # type: ignore[call-overload]
                marks[name].append(mark)
    return marks


def show_flips(told: Paired, results: Sequence[TaskResult], most: int, console: Console) -> None:
    """Prompts that one model got right and the other did not, their answers side by side, both ways."""
    one, other = ({str(line["id"]): line for line in reversed(read(result))} for result in results)
    for title, keys in (("better", told.gained), ("worse", told.lost)):
        if not keys:
            continue
        shown = "" if len(keys) <= most else f", of which {most}"
        line = f"\n{next(names(results))} is {title} on {counted(len(keys))}{shown}:"
        console.print(Text(line), style="bold", soft_wrap=True)
        for key in keys[:most]:
            table = Table(*names(results), title=Text(shortened(one[key]["prompt"])), title_justify="left", expand=True)
            table.add_row(Text(shortened(one[key]["response"])), Text(shortened(other[key]["response"])))
            console.print(table)


def shortened(text: object) -> str:
    """A text as far as it is shown."""
    told = str(text).strip()
    return told if len(told) <= LONGEST_SHOWN else f"{told[:LONGEST_SHOWN]} …"


def show_judgement(told: Judgement, results: Sequence[TaskResult], console: Console) -> None:
    """What the judge preferred."""
    first, second = (result.model_name for result in results)
    for line in (
        f"\n{told.judge}: {first} wins {told.win_rate:.1%} of {told.prompts} prompts against {second}"
        f" (95% interval {told.low:.1%} to {told.high:.1%}, ties half):",
        f"{told.wins} wins, {told.ties} ties, {told.losses} losses, sign test p = {told.p:.2g};"
        f" it says the same in both orders of {told.consistent:.0%}.",
        f"{told.path}",
    ):
        console.print(line, markup=False, soft_wrap=True)


def names(results: Sequence[TaskResult]) -> Iterator[str]:
    """The models' names, as short as tells them apart."""
    paths = [result.model_name.removeprefix("models:/").rstrip("/").split("/") for result in results]
    depth = 1
    while len(paths) == 2 and paths[0][-depth:] == paths[1][-depth:] and depth < max(map(len, paths)):
        depth += 1
    yield from ("/".join(path[-depth:]) for path in paths)


def columns(first: str, *others: str, models: Collection[str] = ()) -> Table:
    """An empty table: names on the left, numbers on the right; the long name of a model is broken into lines."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(Text(first), no_wrap=True)
    for name in others:
        broken = name in models
        table.add_column(Text(name), justify="right", no_wrap=not broken, overflow="fold", min_width=5)
    return table
