"""Stage ``render``: tokenizes preference pairs; both completions follow the same prompt ids by construction."""

import gc
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft
from dpo_core.config.recipe import RenderSettings
from dpo_core.data.lengths import CUTS, EQUAL_AFTER_CUT, NO_TRAINED_TOKEN, summarize_lengths
from dpo_core.data.preference import batches, read_pairs
from dpo_core.errors import DataError, RecipeError
from dpo_core.records import DataReport, RenderedSet
from dpo_core.render.registry import get_renderer, resolve_renderer
from dpo_core.render.renderer import Renderer
from dpo_core.render.report import with_token_lengths, write_report
from dpo_core.render.token_dataset import TEST_SOURCES, TokenPair, write_split
from dpo_core.render.tokenize_pairs import PairTokenizer, TokenizedPair, TooLong
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.render.train_on_what import LAST
from dpo_core.render.truncation import LEAST_TEXT
from dpo_core.stages.render import RenderRequest
from dpo_core.system.progress import Progress


class SplitRenderer:
    """Renders one split, and counts kept, cut and dropped pairs. ``keep_prompts``: keep cut prompts whole as well."""

    def __init__(
        self, renderer: Renderer, settings: RenderSettings, progress: Progress, keep_prompts: bool = False
    ) -> None:
        self.tokenizer = PairTokenizer(renderer, settings.max_length, settings.train_on_what, settings.over_length)
        self.settings, self.progress, self.keep_prompts = settings, progress, keep_prompts
        self.first_error: DataError | None = None
        self.read, self.kept, self.truncated, self.tokens = 0, 0, 0, 0
        self.dropped: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self.longest: Counter[int] = Counter()
        self.sources: list[str] = []

    def render(self, path: Path) -> Iterator[TokenPair]:
        """The token pairs of a file of preferences."""
        # Objects made so far stay alive; garbage collection of them would take a tenth of the time (LAB, 2026-11-25).
        gc.freeze()
        for batch in batches(read_pairs(path)):
            for preference, result in zip(batch, self.tokenizer.tokenize_all(batch), strict=True):
                self.read += 1
                self.progress.advance()
                if isinstance(result, DataError):
                    self.dropped["not renderable"] += 1
                    self.first_error = self.first_error or result
                elif kept := self.keep(result):
                    self.sources.append(preference.source)
                    yield kept

    def keep(self, result: TokenizedPair | TooLong) -> TokenPair | None:
        """Count a rendered pair. Returns the pair to keep, or None when it is dropped."""
        self.longest[result.longest] += 1
        if isinstance(result, TooLong) or (cause := drop_cause(result)):
            self.dropped[result.cause if isinstance(result, TooLong) else cause] += 1
            return None
        self.kept += 1
        self.truncated += result.truncated
        self.cuts.update(result.cuts)
        self.tokens += result.pair.tokens
        return replace(result.pair, whole_prompt=result.whole_prompt) if self.keep_prompts else result.pair

    def report(self, acquired: DataReport) -> DataReport:
        """The report of stage ``acquire`` with this split's counts added."""
        dropped = self.dropped + Counter(acquired.dropped)
        return acquired.model_copy(
            update={
                "kept": self.kept,
                "dropped": dict(sorted(dropped.items())),
                "cuts": {name: self.cuts[name] for name in CUTS if self.cuts[name]},
                "uncut": summarize_lengths(self.longest) if self.longest else None,
            }
        )


def drop_cause(result: TokenizedPair) -> str:
    """The cause for which a rendered pair is useless for training; empty when it is useful."""
    sides = result.pair.sides
    if not sides.chosen.mask.any() or not sides.rejected.mask.any():
        return NO_TRAINED_TOKEN if result.truncated else "no trained token"
    return EQUAL_AFTER_CUT if np.array_equal(sides.chosen.ids, sides.rejected.ids) else ""


def run(request: RenderRequest, draft: Draft) -> None:
    """Render both splits; publish a RenderedSet.

    Raises RecipeError when max_length has no room for the headers, DataError when no pair is left of a split.
    """
    # Stage processes run tokenizers on one thread by default; here nothing forks, and all cores are idle.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    model = request.model
    name = resolve_renderer(request.render.renderer_name, model.name, model.path)
    renderer = get_renderer(name, load_tokenizer(model.path, model.trust_remote_code))
    check_headers(renderer, request.render.max_length)
    progress = Progress("rendering", request.pairs.train_pairs + request.pairs.test_pairs, "pairs")
    renderers = {
        split: SplitRenderer(renderer, request.render, progress, split == "test") for split in ("train", "test")
    }
    paths = {split: draft.path / f"{split}.arrow" for split in renderers}
    for split, split_renderer in renderers.items():
        write_split(paths[split], split_renderer.render(request.pairs.path / f"{split}.arrow"))
        check_not_empty(split_renderer, split)
    before = {"train": request.pairs.train_report, "test": request.pairs.test_report}
    reports = {
        split: with_token_lengths(paths[split], split_renderer.report(before[split]), split_renderer.truncated)
        for split, split_renderer in renderers.items()
    }
    write_report(draft.path, request.pairs.source, reports)
    draft.publish(
        RenderedSet(
            path=draft.final,
            fingerprint=fingerprint.of_files(
                [*paths.values(), *write_test_sources(renderers["test"], draft.path)], draft.path
            ),
            renderer_name=name,
            tokenizer_path=model.path,
            train_pairs=renderers["train"].kept,
            test_pairs=renderers["test"].kept,
            tokens=renderers["train"].tokens,
            truncated=renderers["train"].truncated,
            train_report=reports["train"],
            test_report=reports["test"],
        )
    )


def write_test_sources(split_renderer: SplitRenderer, path: Path) -> list[Path]:
    """Write the test pairs' sources as JSON. Returns the file's path, or an empty list without any source."""
    if not any(split_renderer.sources):
        return []
    (path / TEST_SOURCES).write_text(json.dumps(split_renderer.sources))
    return [path / TEST_SOURCES]


def check_headers(renderer: Renderer, max_length: int) -> None:
    """Raises RecipeError unless the headers around a prompt leave room in ``max_length`` for a token of each text."""
    try:
        headers = len(renderer.build_generation_prompt([{"role": "user", "content": "a"}])) - 1
    except DataError:  # the format may still express the conversations of the dataset
        return
    if max_length < headers + 2:
        raise RecipeError(
            f"max_length={max_length}, and the headers of {renderer.name} around a prompt take {headers} tokens.",
            "Headers are never cut, and need at least one token of the prompt and one of the response beside them.",
            f"Set max_length={2 * (headers + LEAST_TEXT)} or more.",
        )


def check_not_empty(split_renderer: SplitRenderer, split: str) -> None:
    """Raises DataError, with the counts by cause, when no pair of the split is left."""
    if split_renderer.kept:
        return
    settings = split_renderer.settings
    causes = ", ".join(f"{count} {cause}" for cause, count in split_renderer.dropped.items())
    if split_renderer.first_error:
        raise DataError(
            f"None of {split_renderer.read} {split} pairs is left ({causes}). {split_renderer.first_error.found}",
            *split_renderer.first_error.args[1:],
        )
    raise DataError(
        f"None of {split_renderer.read} {split} pairs is left ({causes}) with "
        f"max_length={settings.max_length} and train_on_what={settings.train_on_what}.",
        "Both sides need a trained token after the prompt, and must differ, within max_length.",
        "Raise max_length." if settings.train_on_what == LAST else f"Raise max_length, or set train_on_what={LAST}.",
    )
