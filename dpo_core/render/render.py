"""The second stage: pairs of text to pairs of token ids, the prompt's ids the same for both sides by construction."""

import gc
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dpo_core import fingerprint
from dpo_core.data.preference import batches, read_pairs
from dpo_core.errors import DataError
from dpo_core.progress import Progress
from dpo_core.recipe import RenderSettings
from dpo_core.records import DataReport, RenderedSet
from dpo_core.render.fit import Fitted, fit_all
from dpo_core.render.registry import get_renderer, resolve
from dpo_core.render.rendered import TEST_SOURCES, TokenPair, write_split
from dpo_core.render.renderer import Renderer
from dpo_core.render.report import in_tokens, write
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.render.weights import LAST
from dpo_core.requests import RenderRequest
from dpo_core.store import Draft


class Counted:
    """Renders one split, counting what is kept, truncated and dropped."""

    def __init__(self, renderer: Renderer, settings: RenderSettings, progress: Progress) -> None:
        self.renderer, self.settings, self.progress = renderer, settings, progress
        self.refused: DataError | None = None
        self.read, self.kept, self.truncated, self.tokens = 0, 0, 0, 0
        self.dropped: Counter[str] = Counter()
        self.sources: list[str] = []

    def render(self, path: Path) -> Iterator[TokenPair]:
        """The token pairs of a file of preferences."""
        # What is there by now stays; searching it for garbage would take a tenth of the time (LAB, 2026-11-25).
        gc.freeze()
        for batch in batches(read_pairs(path)):
            made = fit_all(self.renderer, batch, self.settings.max_length, self.settings.train_on_what)
            for preference, fitted in zip(batch, made, strict=True):
                self.read += 1
                self.progress.advance()
                if isinstance(fitted, Fitted) and self.keep(fitted):
                    self.sources.append(preference.source)
                    yield fitted.pair
                elif isinstance(fitted, DataError):
                    self.dropped["not renderable"] += 1
                    self.refused = self.refused or fitted

    def keep(self, fitted: Fitted) -> bool:
        """Count a rendered pair: kept, or dropped for a cause."""
        cause = useless(fitted)
        if cause:
            self.dropped[cause] += 1
            return False
        self.kept += 1
        self.truncated += fitted.truncated
        self.tokens += fitted.pair.tokens
        return True

    def report(self, before: DataReport) -> DataReport:
        """The counts of acquisition and rendering together."""
        dropped = self.dropped + Counter(before.dropped)
        return before.model_copy(update={"kept": self.kept, "dropped": dict(sorted(dropped.items()))})


def useless(fitted: Fitted) -> str | None:
    """Why a rendered pair teaches nothing, or None."""
    sides = fitted.pair.sides
    if not sides.chosen.mask.any() or not sides.rejected.mask.any():
        return "over-long" if fitted.truncated else "no trained token"
    if np.array_equal(sides.chosen.ids, sides.rejected.ids):
        return "equal sides after truncation"
    return None


def run(request: RenderRequest, draft: Draft) -> None:
    """Render both splits; publish a RenderedSet.

    Raises DataError when no pair is left of a split.
    """
    # A stage's process runs its tokenizer on one thread unless told so; here nothing forks and all cores are idle.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    model = request.model
    name = resolve(request.render.renderer_name, model.name, model.path)
    renderer = get_renderer(name, load_tokenizer(model.path, model.trust_remote_code))
    progress = Progress("rendering", request.pairs.train_pairs + request.pairs.test_pairs, "pairs")
    counted = {split: Counted(renderer, request.render, progress) for split in ("train", "test")}
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


def write_sources(part: Counted, path: Path) -> list[Path]:
    """The test pairs' sources as a file, where they have any."""
    if not any(part.sources):
        return []
    (path / TEST_SOURCES).write_text(json.dumps(part.sources))
    return [path / TEST_SOURCES]


def check(part: Counted, split: str) -> None:
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
