"""Console output of a training run: its facts, example pairs, metrics, a progress bar and the time left."""

import itertools
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dpo_core.records import StepMetrics
from dpo_core.render.renderer import Renderer
from dpo_core.render.token_dataset import CompletionTokens, TokenPair
from dpo_core.system import progress

LINE_METRICS = ("dpo_loss", "accuracy", "margin", "learning_rate", "batch_time", "test/accuracy", "test/nll")
MAX_PROMPT_CHARACTERS = 600
LONG_STEP_S = 30.0


def format_number(value: float) -> str:
    """A readable number: 9.0e-06, 0.6931, 112,638."""
    if value == 0 or (abs(value) >= 1 and float(value).is_integer()):
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:,.4f}"


class TrainingConsole:
    """Tables and a progress bar on a terminal, else one line per step; ``logs.log`` gets the lines in both cases.

    The bar and the lines give the time left. Away from a terminal, a line reports a step that takes long.
    """

    def __init__(self, log: Path, total: int, done: int, show_every: int) -> None:
        self.console = Console(highlight=False)
        self.log, self.total, self.show_every = log, total, show_every
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("training", total=total, completed=done)
        self.progress = progress.Progress("training", total, "steps", done)
        self.last_line_time = progress.now()
        self.pulse = progress.repeating(self.report_long_step)

    def __enter__(self) -> "TrainingConsole":
        self.bar.start()
        self.pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pulse.__exit__(kind, error, trace)
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line, on the terminal and in the log."""
        self.console.print(text, markup=False, soft_wrap=True)
        self.log_line(text)

    def log_line(self, text: str) -> None:
        """A line in the log only."""
        with self.log.open("a") as stream:
            stream.write(text + "\n")

    def show_facts(self, facts: dict[str, str]) -> None:
        """A table of the run's facts: model, device, pairs, steps and settings."""
        table = Table(title="Run", show_header=False, title_justify="left")
        for name, value in facts.items():
            table.add_row(name, value)
            self.log_line(f"{name}: {value}")
        self.console.print(table)

    def show_examples(self, renderer: Renderer, pairs: list[TokenPair]) -> None:
        """Example pairs as the model sees them, with trained tokens in color."""
        for number, pair in enumerate(pairs, start=1):
            text = Text(f"Example {number}: ", style="bold")
            text.append(shorten(decode_tokens(renderer, pair.prompt.tolist())), style="dim")
            for name, side, color in (
                ("chosen", pair.sides.chosen, "green"),
                ("rejected", pair.sides.rejected, "red"),
            ):
                text.append(f"\n{name:>9} ", style="bold").append_text(colored_completion(renderer, side, color))
            self.console.print(text, soft_wrap=True)

    def step(self, metrics: StepMetrics) -> None:
        """Show a step: move the bar, and print a table every ``show_every`` steps, or a line."""
        self.bar.update(self.task, completed=metrics.step)
        line = plain_line(metrics, self.total) + self.time_left(metrics.step)
        self.last_line_time = progress.now()
        self.log_line(line)
        if not self.console.is_terminal:
            self.console.print(line, markup=False, soft_wrap=True)
        elif metrics.step % self.show_every == 0 or metrics.step in (1, self.total):
            self.console.print(step_table(metrics))

    def time_left(self, step: int) -> str:
        """The time left, as the end of a line; empty before this process's first step and after the last step."""
        self.progress.reach(step)
        if step == self.progress.before:  # the evaluation before the first step: not a measure of speed
            self.progress.start()
            return ""
        return f", {self.progress.outlook(self.progress.moved)}" if step < self.total else ""

    def report_long_step(self) -> None:
        """Print a line if the current step takes long and there is no terminal."""
        since = progress.now() - self.last_line_time
        if since >= LONG_STEP_S and not self.console.is_terminal:
            progress.say(f"{self.progress.count()}, {progress.format_duration(since)} since the last line")


def plain_line(metrics: StepMetrics, total: int) -> str:
    """``step 10/150 dpo_loss 0.6931 …``."""
    values = [f"{name} {format_number(metrics.values[name])}" for name in LINE_METRICS if name in metrics.values]
    return " ".join([f"step {metrics.step}/{total}", *values])


def step_table(metrics: StepMetrics) -> Table:
    """Every metric of a step."""
    table = Table(title=f"Step {metrics.step}", title_justify="left")
    table.add_column("Metric")
    table.add_column("Value", justify="right")
    for name in sorted(metrics.values):
        table.add_row(name, format_number(metrics.values[name]))
    return table


def colored_completion(renderer: Renderer, side: CompletionTokens, color: str) -> Text:
    """A completion's text: trained tokens in colour, others dim."""
    text = Text()
    for trained in mask_runs(side):
        style = color if side.mask[trained.start] else "dim"
        text.append(decode_tokens(renderer, side.ids[trained].tolist()), style=style)
    return text


def decode_tokens(renderer: Renderer, ids: list[int]) -> str:
    """The text of ids, special tokens shown."""
    return str(renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def mask_runs(side: CompletionTokens) -> list[slice]:
    """Slices of consecutive tokens that are all trained or all untrained."""
    borders = [
        0,
        *(index for index in range(1, len(side.ids)) if side.mask[index] != side.mask[index - 1]),
        len(side.ids),
    ]
    return [slice(start, end) for start, end in itertools.pairwise(borders) if end > start]


def shorten(text: str) -> str:
    """The end of a long text: the part that the response follows."""
    return text if len(text) <= MAX_PROMPT_CHARACTERS else "…" + text[-MAX_PROMPT_CHARACTERS:]
