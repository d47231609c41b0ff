"""What a training run shows: its facts, example pairs, a table of metrics every so many steps, a bar and an ETA."""

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
    """A number for people: 9.0e-06, 0.6931, 112,638."""
    if value == 0 or (abs(value) >= 1 and float(value).is_integer()):
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:,.4f}"


class TrainingConsole:
    """A terminal gets tables and a bar, anything else one plain line a step; ``logs.log`` gets the plain lines.

    Both tell the time left. Of a step that takes long, so does a line now and then.
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
        self.shown = progress.now()
        self.pulse = progress.repeating(self.still_here)

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
        self.note(text)

    def note(self, text: str) -> None:
        """A line in the log only."""
        with self.log.open("a") as stream:
            stream.write(text + "\n")

    def facts(self, facts: dict[str, str]) -> None:
        """What is about to be trained on what."""
        table = Table(title="Run", show_header=False, title_justify="left")
        for name, value in facts.items():
            table.add_row(name, value)
            self.note(f"{name}: {value}")
        self.console.print(table)

    def examples(self, renderer: Renderer, pairs: list[TokenPair]) -> None:
        """Example pairs as the model sees them, trained tokens coloured."""
        for number, pair in enumerate(pairs, start=1):
            text = Text(f"Example {number}: ", style="bold")
            text.append(shorten(decode_tokens(renderer, pair.prompt.tolist())), style="dim")
            for name, side, colour in (
                ("chosen", pair.sides.chosen, "green"),
                ("rejected", pair.sides.rejected, "red"),
            ):
                text.append(f"\n{name:>9} ", style="bold").append_text(colored_completion(renderer, side, colour))
            self.console.print(text, soft_wrap=True)

    def step(self, metrics: StepMetrics) -> None:
        """One step: the bar moves; a table every ``show_every`` steps, or a line."""
        self.bar.update(self.task, completed=metrics.step)
        line = plain_line(metrics, self.total) + self.left(metrics.step)
        self.shown = progress.now()
        self.note(line)
        if not self.console.is_terminal:
            self.console.print(line, markup=False, soft_wrap=True)
        elif metrics.step % self.show_every == 0 or metrics.step in (1, self.total):
            self.console.print(step_table(metrics))

    def left(self, step: int) -> str:
        """The time left, as the end of a line; nothing before a step of this process is done, or after the last."""
        self.progress.reach(step)
        if step == self.progress.before:  # the evaluation before the first step, which says nothing of their speed
            self.progress.start()
            return ""
        return f", {self.progress.outlook(self.progress.moved)}" if step < self.total else ""

    def still_here(self) -> None:
        """Say that a step takes long; a terminal has a bar that moves."""
        since = progress.now() - self.shown
        if since >= LONG_STEP_S and not self.console.is_terminal:
            progress.say(f"{self.progress.count()}, {progress.duration(since)} since the last line")


def plain_line(metrics: StepMetrics, total: int) -> str:
    """``step 10/150 dpo_loss 0.6931 …``."""
    shown = [f"{name} {format_number(metrics.values[name])}" for name in LINE_METRICS if name in metrics.values]
    return " ".join([f"step {metrics.step}/{total}", *shown])


def step_table(metrics: StepMetrics) -> Table:
    """Every metric of a step."""
    table = Table(title=f"Step {metrics.step}", title_justify="left")
    table.add_column("Metric")
    table.add_column("Value", justify="right")
    for name in sorted(metrics.values):
        table.add_row(name, format_number(metrics.values[name]))
    return table


def colored_completion(renderer: Renderer, side: CompletionTokens, colour: str) -> Text:
    """A completion's text: trained tokens in colour, others dim."""
    text = Text()
    for trained in mask_runs(side):
        style = colour if side.mask[trained.start] else "dim"
        text.append(decode_tokens(renderer, side.ids[trained].tolist()), style=style)
    return text


def decode_tokens(renderer: Renderer, ids: list[int]) -> str:
    """The text of ids, special tokens shown."""
    return str(renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def mask_runs(side: CompletionTokens) -> list[slice]:
    """Stretches of tokens that are all trained or all not."""
    borders = [
        0,
        *(index for index in range(1, len(side.ids)) if side.mask[index] != side.mask[index - 1]),
        len(side.ids),
    ]
    return [slice(start, end) for start, end in itertools.pairwise(borders) if end > start]


def shorten(text: str) -> str:
    """The end of a long text, which is what the answer follows."""
    return text if len(text) <= MAX_PROMPT_CHARACTERS else "…" + text[-MAX_PROMPT_CHARACTERS:]
