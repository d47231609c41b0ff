"""Viewer for preference data, ``dpo data``: the dataset's report and, on a terminal, a pager through its pairs."""

import sys
from collections.abc import Callable

import pyarrow as pa
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from dpo_core.cache.store import store_of
from dpo_core.config.recipe import Recipe
from dpo_core.config.settings import read_recipe, split_recipe_file
from dpo_core.data import report
from dpo_core.data.preference import ROWS_PER_BATCH, Message, Preference, from_row
from dpo_core.data.sources import pin_source
from dpo_core.model.locate import tokenizer_source
from dpo_core.pipeline import stage_calls
from dpo_core.process.run_stage import run_stage
from dpo_core.records import ModelSource, PairSet, RenderedSet
from dpo_core.stages import demo_base

HINT = (
    "No model_name is given: lengths are in characters, and nothing is truncated. Set model_name=<directory or hub "
    "id> for lengths in tokens and colored trained tokens; only the model's tokenizer is read."
)
KEYS = "n, space: next   p: previous   j, k: down, up   t: other split   q: quit"
NEXT, PREVIOUS = ("n", " ", "\r", "\x1b[C"), ("p", "b", "\x1b[D")
DOWN, UP, OTHER_SPLIT, QUIT = ("j", "\x1b[B"), ("k", "\x1b[A"), ("t",), ("q", "\x1b", "\x03", "\x04")

Page = Callable[[str, int], RenderableType]


def data_command(words: list[str]) -> None:
    """Run ``data [recipe.toml | dataset] [key=value …]``: print the report; on a terminal, page through the pairs.

    Raises RecipeError for a wrong setting, DataError for a dataset that is missing or malformed.
    """
    recipe = parse_recipe(words)
    source = pin_source(recipe.data)
    tokenizer, store = find_tokenizer(recipe), store_of(recipe)
    pairs = run_stage(store, stage_calls.acquire_call(recipe, source)).record
    rendered = run_stage(store, stage_calls.render_call(recipe, pairs, tokenizer)).record if tokenizer else None
    console = Console(highlight=False)
    print_report(console, pairs, rendered)
    if console.is_terminal and sys.stdin.isatty():
        console.print(f"{KEYS}\nPress a key to see the pairs.", style="dim")
        page = token_pages(rendered) if rendered else text_pages(pairs)
        record = rendered or pairs
        Pager(console, {"train": record.train_pairs, "test": record.test_pairs}, page).run(read_key)


def parse_recipe(words: list[str]) -> Recipe:
    """The recipe of the command's words; the first word may be a recipe file or a dataset."""
    first = words[0] if words and "=" not in words[0] and not words[0].startswith("--") else None
    if first is None or first.endswith(".toml"):
        return read_recipe(*split_recipe_file(words))
    return read_recipe(None, [f"dataset={first}", *words[1:]])


def find_tokenizer(recipe: Recipe) -> ModelSource | None:
    """The tokenizer of ``model_name``; None when no model is given.

    Raises RecipeError when the model has no tokenizer.
    """
    settings = recipe.model
    if settings.model_name is None:
        return None
    if settings.model_name == "demo":
        return run_stage(store_of(recipe), demo_base.call(recipe.data.demo_pairs, recipe.train.seed)).record
    return tokenizer_source(settings.model_name, settings.model_revision, settings.trust_remote_code)


def print_report(console: Console, pairs: PairSet, rendered: RenderedSet | None) -> None:
    """Print the dataset's report: tables on a terminal, plain lines elsewhere."""
    record = rendered or pairs
    reports = {"train": record.train_report, "test": record.test_report}
    if console.is_terminal:
        console.print(report.report_tables(pairs.source, reports))
    else:
        print(report.report_text(pairs.source, reports), end="")
    if rendered is None:
        console.print(HINT, soft_wrap=True)
    else:
        console.print(f"Rendered by {rendered.renderer_name}.", soft_wrap=True)
    console.print(f"Written to {record.path / report.JSON}", soft_wrap=True)


def token_pages(rendered: RenderedSet) -> Page:
    """Pages of rendered pairs: the decoded tokens, with the trained ones colored."""
    # Lazy: the renderers import transformers (2 s), which a report alone need not pay.
    from dpo_core.render.registry import get_renderer
    from dpo_core.render.token_dataset import open_split
    from dpo_core.render.tokenizer import load_tokenizer
    from dpo_core.train.runtime.console import colored_completion, decode_tokens

    renderer = get_renderer(rendered.renderer_name, load_tokenizer(rendered.tokenizer_path))
    splits = {split: open_split(rendered.path, split) for split in ("train", "test")}

    def page(split: str, index: int) -> RenderableType:
        pair = splits[split][index]
        tokens = (len(pair.sides.chosen.ids), len(pair.sides.rejected.ids))
        titles = tuple(f"{name}, {count} tokens" for name, count in zip(("chosen", "rejected"), tokens, strict=True))
        bodies = (
            colored_completion(renderer, pair.sides.chosen, "green"),
            colored_completion(renderer, pair.sides.rejected, "red"),
        )
        prompt = Text(decode_tokens(renderer, pair.prompt.tolist()), style="dim")
        return Group(Text(f"prompt, {len(pair.prompt)} tokens", style="bold"), prompt, side_by_side(titles, bodies))

    return page


def text_pages(pairs: PairSet) -> Page:
    """Pages of pairs as text, each message with its role."""
    readers = {
        split: pa.ipc.open_file(pa.memory_map(str(pairs.path / f"{split}.arrow"))) for split in ("train", "test")
    }

    def pair(split: str, index: int) -> Preference:
        batch, row = divmod(index, ROWS_PER_BATCH)
        return from_row(readers[split].get_batch(batch).slice(row, 1).to_pylist()[0])

    def page(split: str, index: int) -> RenderableType:
        preference = pair(split, index)
        bodies = format_messages(preference.sides.chosen, "green"), format_messages(preference.sides.rejected, "red")
        return Group(format_messages(preference.prompt, "dim"), side_by_side(("chosen", "rejected"), bodies))

    return page


def format_messages(messages: list[Message], style: str) -> Text:
    """Messages one below the other, each with its role."""
    text = Text()
    for message in messages:
        text.append(f"{message['role']}: ", style="bold").append(f"{message['content']}\n", style=style)
    return text


def side_by_side(titles: tuple[str, ...], bodies: tuple[Text, ...]) -> Table:
    """A table with one column per text."""
    table = Table(expand=True, show_edge=False, pad_edge=False)
    for title in titles:
        table.add_column(title, ratio=1, overflow="fold")
    table.add_row(*bodies)
    return table


class Pager:
    """Terminal pager that shows one pair at a time.

    ``counts``: number of pairs by split; ``page``: renders the pair of a split and index.
    """

    def __init__(self, console: Console, counts: dict[str, int], page: Page) -> None:
        self.console, self.page = console, page
        self.counts = {split: count for split, count in counts.items() if count}
        self.split, self.index, self.top = next(iter(self.counts)), 0, 0

    def run(self, read: Callable[[], str]) -> None:
        """Show pages until a quit key is pressed. ``read`` waits for one key."""
        key = read()
        while key not in QUIT:
            self.draw()
            key = read()
            self.act(key)

    def act(self, key: str) -> None:
        """Move to another pair or split, or scroll; other keys do nothing."""
        if key in NEXT + PREVIOUS:
            step = 1 if key in NEXT else -1
            self.index, self.top = (self.index + step) % self.counts[self.split], 0
        elif key in DOWN + UP:
            self.top = max(self.top + (self.console.height // 2 if key in DOWN else -self.console.height // 2), 0)
        elif key in OTHER_SPLIT:
            names = list(self.counts)
            self.split, self.index, self.top = names[names.index(self.split) - 1], 0, 0

    def draw(self) -> None:
        """Draw the part of the page that fits, its position in the split, and the keys."""
        lines = self.console.render_lines(self.page(self.split, self.index), pad=False)
        height = self.console.height - 3
        self.top = min(self.top, max(len(lines) - height, 0))
        self.console.clear()
        self.console.print(Rule(f"{self.split} {self.index + 1} of {self.counts[self.split]}"))
        for line in lines[self.top : self.top + height]:
            self.console.print(Text.assemble(*((part.text, part.style or "") for part in line)), soft_wrap=True)
        position = f"   (line {self.top + 1} of {len(lines)})" if len(lines) > height else ""
        self.console.print(f"{KEYS}{position}", style="dim", end="", soft_wrap=True)


def read_key() -> str:
    """One key from the terminal; the quit key at the end of the input."""
    import click  # lazy: only the pager needs it

    try:
        return click.getchar()
    except (EOFError, KeyboardInterrupt):
        return QUIT[0]
