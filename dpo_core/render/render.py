"""The second stage: pairs of text to pairs of token ids, the prompt's ids the same for both sides by construction."""

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
from dpo_core.data.lengths import CUTS, EQUAL_WITHIN, NOT_WITHIN, summary
from dpo_core.data.preference import batches, read_pairs
from dpo_core.errors import DataError, RecipeError
from dpo_core.records import DataReport, RenderedSet
from dpo_core.render.registry import get_renderer, resolve
from dpo_core.render.renderer import Renderer
from dpo_core.render.report import in_tokens, write
from dpo_core.render.token_dataset import TEST_SOURCES, TokenPair, write_split
from dpo_core.render.tokenize_pairs import PairTokenizer, TokenizedPair, TooLong
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.render.train_on_what import LAST
from dpo_core.render.truncation import LEAST_TEXT
from dpo_core.stages.render import RenderRequest
from dpo_core.system.progress import Progress


class SplitRenderer:
    """Renders one split, counting what is kept, cut and dropped. ``keeps_prompts``: whole, where they are cut."""

    def __init__(
        self, renderer: Renderer, settings: RenderSettings, progress: Progress, keeps_prompts: bool = False
    ) -> None:
        self.fitter = PairTokenizer(renderer, settings.max_length, settings.train_on_what, settings.over_length)
        self.settings, self.progress, self.keeps_prompts = settings, progress, keeps_prompts
        self.refused: DataError | None = None
        self.read, self.kept, self.truncated, self.tokens = 0, 0, 0, 0
        self.dropped: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self.longest: Counter[int] = Counter()
        self.sources: list[str] = []

    def render(self, path: Path) -> Iterator[TokenPair]:
        """The token pairs of a file of preferences."""
        # What is there by now stays; searching it for garbage would take a tenth of the time (LAB, 2026-11-25).
        gc.freeze()
        for batch in batches(read_pairs(path)):
            for preference, fitted in zip(batch, self.fitter.fit_all(batch), strict=True):
                self.read += 1
                self.progress.advance()
                if isinstance(fitted, DataError):
                    self.dropped["not renderable"] += 1
                    self.refused = self.refused or fitted
                elif kept := self.keep(fitted):
                    self.sources.append(preference.source)
                    yield kept

    def keep(self, fitted: TokenizedPair | TooLong) -> TokenPair | None:
        """Count a rendered pair: kept, or dropped for a cause."""
        self.longest[fitted.longest] += 1
        if isinstance(fitted, TooLong) or (cause := useless(fitted)):
            self.dropped[fitted.cause if isinstance(fitted, TooLong) else cause] += 1
            return None
        self.kept += 1
        self.truncated += fitted.truncated
        self.cuts.update(fitted.cuts)
        self.tokens += fitted.pair.tokens
        return replace(fitted.pair, whole_prompt=fitted.whole_prompt) if self.keeps_prompts else fitted.pair

    def report(self, before: DataReport) -> DataReport:
        """The counts of acquisition and rendering together."""
        dropped = self.dropped + Counter(before.dropped)
        return before.model_copy(
            update={
                "kept": self.kept,
                "dropped": dict(sorted(dropped.items())),
                "cuts": {name: self.cuts[name] for name in CUTS if self.cuts[name]},
                "uncut": summary(self.longest) if self.longest else None,
            }
        )


def useless(fitted: TokenizedPair) -> str:
    """Why a rendered pair teaches nothing; empty when it does."""
    sides = fitted.pair.sides
    if not sides.chosen.mask.any() or not sides.rejected.mask.any():
        return NOT_WITHIN if fitted.truncated else "no trained token"
    return EQUAL_WITHIN if np.array_equal(sides.chosen.ids, sides.rejected.ids) else ""


def run(request: RenderRequest, draft: Draft) -> None:
    """Render both splits; publish a RenderedSet.

    Raises RecipeError when max_length has no room for the headers, DataError when no pair is left of a split.
    """
    # A stage's process runs its tokenizer on one thread unless told so; here nothing forks and all cores are idle.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    model = request.model
    name = resolve(request.render.renderer_name, model.name, model.path)
    renderer = get_renderer(name, load_tokenizer(model.path, model.trust_remote_code))
    check_headers(renderer, request.render.max_length)
    progress = Progress("rendering", request.pairs.train_pairs + request.pairs.test_pairs, "pairs")
    counted = {split: SplitRenderer(renderer, request.render, progress, split == "test") for split in ("train", "test")}
    paths = {split: draft.path / f"{split}.arrow" for split in counted}
    for split, part in counted.items():
        write_split(paths[split], part.render(request.pairs.path / f"{split}.arrow"))
        check(part, split)
    before = {"train": request.pairs.train_report, "test": request.pairs.test_report}
    reports = {
        split: in_tokens(paths[split], part.report(before[split]), part.truncated) for split, part in counted.items()
    }
    write(draft.path, request.pairs.source, reports)
    draft.publish(
        RenderedSet(
            path=draft.final,
            fingerprint=fingerprint.of_files(
                [*paths.values(), *write_sources(counted["test"], draft.path)], draft.path
            ),
            renderer_name=name,
            tokenizer_path=model.path,
            train_pairs=counted["train"].kept,
            test_pairs=counted["test"].kept,
            tokens=counted["train"].tokens,
            truncated=counted["train"].truncated,
            train_report=reports["train"],
            test_report=reports["test"],
        )
    )


def write_sources(part: SplitRenderer, path: Path) -> list[Path]:
    """The test pairs' sources as a file, where they have any."""
    if not any(part.sources):
        return []
    (path / TEST_SOURCES).write_text(json.dumps(part.sources))
    return [path / TEST_SOURCES]


def check_headers(renderer: Renderer, max_length: int) -> None:
    """Raises RecipeError unless the headers around a prompt leave room in ``max_length`` for a token of each text."""
    try:
        headers = len(renderer.build_generation_prompt([{"role": "user", "content": "a"}])) - 1
    except DataError:  # a format that refuses this conversation may take the data's
        return
    if max_length < headers + 2:
        raise RecipeError(
            f"max_length={max_length}, and the headers of {renderer.name} around a prompt take {headers} tokens.",
            "Headers are never cut, and a token of the prompt and one of the response come on top.",
            f"Set max_length={2 * (headers + LEAST_TEXT)} or more.",
        )


def check(part: SplitRenderer, split: str) -> None:
    """Raises DataError when nothing is left to train or test on, saying what became of the pairs."""
    if part.kept:
        return
    settings = part.settings
    causes = ", ".join(f"{count} {cause}" for cause, count in part.dropped.items())
    if part.refused:
        raise DataError(
            f"None of {part.read} {split} pairs is left ({causes}). {part.refused.found}", *part.refused.args[1:]
        )
    raise DataError(
        f"None of {part.read} {split} pairs is left ({causes}) with "
        f"max_length={settings.max_length} and train_on_what={settings.train_on_what}.",
        "Both sides need a trained token after the prompt, and must differ, within max_length.",
        "Raise max_length." if settings.train_on_what == LAST else f"Raise max_length, or set train_on_what={LAST}.",
    )
