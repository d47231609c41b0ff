"""The second stage: pairs of text to pairs of token ids, the prompt's ids the same for both sides by construction."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dpo_core import fingerprint
from dpo_core.data.preference import read_pairs
from dpo_core.errors import DataError
from dpo_core.records import DataReport, RenderedSet
from dpo_core.render.fit import fit
from dpo_core.render.registry import get_renderer, resolve
from dpo_core.render.rendered import TokenPair, write_split
from dpo_core.render.renderer import Renderer
from dpo_core.render.report import in_tokens, write
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.requests import RenderRequest
from dpo_core.store import Draft


class Counted:
    """Renders one split, counting what is kept, truncated and dropped."""

    def __init__(self, renderer: Renderer, max_length: int) -> None:
        self.renderer, self.max_length = renderer, max_length
        self.read, self.kept, self.truncated, self.tokens = 0, 0, 0, 0
        self.dropped: Counter[str] = Counter()

    def render(self, path: Path) -> Iterator[TokenPair]:
        """The token pairs of a file of preferences."""
        for preference in read_pairs(path):
            self.read += 1
            fitted = fit(self.renderer, preference, self.max_length)
            cause = useless(fitted.pair)
            if cause:
                self.dropped[cause] += 1
                continue
            self.kept += 1
            self.truncated += fitted.truncated
            self.tokens += fitted.pair.tokens
            yield fitted.pair

    def report(self, before: DataReport) -> DataReport:
        """The counts of acquisition and rendering together."""
        dropped = self.dropped + Counter(before.dropped)
        return before.model_copy(update={"kept": self.kept, "dropped": dict(sorted(dropped.items()))})


def useless(pair: TokenPair) -> str | None:
    """Why a rendered pair teaches nothing, or None."""
    sides = pair.sides
    if not sides.chosen.mask.any() or not sides.rejected.mask.any():
        return "no trained token"
    if sides.chosen.ids.tolist() == sides.rejected.ids.tolist():
        return "equal sides after truncation"
    return None


def run(request: RenderRequest, draft: Draft) -> None:
    """Render both splits; publish a RenderedSet.

    Raises DataError when no pair is left of a split.
    """
    model = request.model
    name = resolve(request.render.renderer_name, model.name, model.path)
    renderer = get_renderer(name, load_tokenizer(model.path, model.trust_remote_code))
    counted = {split: Counted(renderer, request.render.max_length) for split in ("train", "test")}
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
            fingerprint=fingerprint.of_files(list(paths.values()), draft.path),
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


def check(part: Counted, split: str) -> None:
    """Raises DataError when nothing is left to train or test on."""
    if not part.kept:
        raise DataError(
            f"None of {part.read} {split} pairs has a trained token within max_length={part.max_length}.",
            "Both sides must differ within max_length.",
            "Raise max_length.",
        )
