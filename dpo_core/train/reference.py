"""The reference: scored once, token by token, and kept under the hash of everything it depends on; or on the fly."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from dpo_core import fingerprint
from dpo_core.model.device import check
from dpo_core.model.load import load_model
from dpo_core.records import ReferenceSet
from dpo_core.render.rendered import Rows, open_split
from dpo_core.requests import ScoreRequest
from dpo_core.store import Draft
from dpo_core.train import order
from dpo_core.train.footprint import tokens_without_gradients
from dpo_core.train.layout import choose
from dpo_core.train.logps import completion_logps
from dpo_core.train.packing import Batch, Layout, branches, build, onto, split

# Where each scored pair's tokens begin in the flat ``logps``; its two sides follow each other, chosen first.
INDEX, OFFSETS, LOGPS = "index", "offsets", "logps"

PAIRS_AT_ONCE = 4096  # read and sorted into microbatches together, so that memory does not grow with the pairs


class Reference(Protocol):
    """What the loss asks of a reference."""

    def of(self, indices: list[int], batch: Batch) -> Tensor:
        """log π_ref (M,) float32 of the trained tokens of these pairs, which ``batch`` holds in this order."""


class References:
    """Per-token log-probabilities by pair index, from a safetensors file."""

    def __init__(self, path: Path) -> None:
        tensors = load_file(path)
        self._logps: NDArray[np.float32] = tensors[LOGPS]
        self._offsets: NDArray[np.int64] = tensors[OFFSETS]
        self._place = {int(index): place for place, index in enumerate(tensors[INDEX])}

    def of(self, indices: list[int], batch: Batch) -> Tensor:
        """As they were scored, on the batch's device."""
        known = np.concatenate([self.of_pair(index) for index in indices])
        return onto(torch.from_numpy(known), batch.ids.device)

    def of_pair(self, index: int) -> NDArray[np.float32]:
        """One pair's trained tokens, chosen then rejected."""
        place = self._place[index]
        return self._logps[self._offsets[place] : self._offsets[place + 1]]


class OnTheFly:
    """The reference model itself, asked in every step: nothing is stored. Adapters, if any, are off meanwhile."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.model, self.precision = model, precision

    def of(self, indices: list[int], batch: Batch) -> Tensor:
        """Computed now."""
        with without_adapters(self.model):
            return completion_logps(self.model, batch, self.precision)


def without_adapters(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, a peft model is the plain model under its adapters."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def open_references(path: Path, split_name: str) -> References:
    """The ``train`` or ``test`` split of a ReferenceSet's directory."""
    return References(path / f"{split_name}.safetensors")


def score(
    model: nn.Module, rows: Rows, indices: list[int], layout: Layout, precision: str
) -> dict[str, NDArray[np.generic]]:
    """Log-probabilities of the trained tokens of these pairs, flat, with offsets (N + 1,) and pair indices (N,)."""
    windows = [indices[start : start + PAIRS_AT_ONCE] for start in range(0, len(indices), PAIRS_AT_ONCE)]
    runs = [run for window in windows for run in score_window(model, rows, window, layout, precision)]
    return {
        INDEX: np.array(indices, dtype=np.int64),
        OFFSETS: np.cumsum([0, *(len(run) for run in runs)]).astype(np.int64),
        LOGPS: np.concatenate(runs),
    }


def score_window(
    model: nn.Module, rows: Rows, indices: list[int], layout: Layout, precision: str
) -> list[NDArray[np.float32]]:
    """Log-probabilities of each pair's trained tokens; all these pairs' tokens are in memory at once."""
    device = next(model.parameters()).device
    items = [branches(rows[index]) for index in indices]
    runs: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(indices)
    for group in split(layout, items, tokens_without_gradients(model)):
        batch = build(layout, [items[place] for place in group], device)
        logps = completion_logps(model, batch, precision).float().cpu().numpy()
        ends = np.cumsum(np.array(batch.counts).reshape(-1, 2).sum(1))
        for place, run in zip(group, np.split(logps, ends[:-1]), strict=True):
            runs[place] = run
    return runs


def run(request: ScoreRequest, draft: Draft) -> None:
    """Score the whole test split and, unless it is done on the fly, every pair of the run; publish a ReferenceSet."""
    train, rendered = request.train, request.rendered
    check(train.precision)
    model = load_model(request.model.path, train.seed, request.model.trust_remote_code, request.frozen_dtype)
    layout = choose(model, train.layout, rendered)
    wanted = {
        "train": order.needed(rendered.train_pairs, train) if request.score_train else [],
        "test": list(range(rendered.test_pairs)),
    }
    for name, indices in wanted.items():
        if indices:
            tensors = score(model, open_split(rendered.path, name), indices, layout, train.precision)
            save_file(tensors, draft.path / f"{name}.safetensors")
    files = [draft.path / f"{name}.safetensors" for name, indices in wanted.items() if indices]
    draft.publish(
        ReferenceSet(
            path=draft.final,
            fingerprint=fingerprint.of_files(files, draft.path),
            model=request.model,
            train_pairs=len(wanted["train"]),
            test_pairs=len(wanted["test"]),
        )
    )
