"""The reference: scored once, token by token, and kept under the hash of everything it depends on; or on the fly.

A pair is scored once for all runs whose reference is the same model in the same numerics: a run that needs more pairs
takes over those that are stored and scores the missing ones (:mod:`dpo_core.cache.reference_cache`). A log-probability
depends on its neighbours in a microbatch by rounding alone (1e-6 nats a token in float32), so that what is taken over
equals what would be scored anew within rounding, and the loss at step 0 is ln 2 within rounding.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from dpo_core.cache import fingerprint, reference_cache
from dpo_core.cache.reference_cache import INDEX, LOGPS, OFFSETS, Logps, flat, split_file
from dpo_core.cache.store import Draft
from dpo_core.model.load import load_model
from dpo_core.records import ReferenceSet
from dpo_core.render.token_dataset import TokenDataset, open_split
from dpo_core.stages.score_reference import ScoreRequest
from dpo_core.system.device import check
from dpo_core.system.progress import Progress, repeating, say
from dpo_core.train import data_order
from dpo_core.train.batching.batch_layout import attention_signature, choose_layout
from dpo_core.train.batching.memory_estimate import tokens_without_gradients
from dpo_core.train.batching.packing import Batch, Layout, branches, build, split_microbatches, to_device
from dpo_core.train.logps import completion_logps

PAIRS_PER_WINDOW = 4096  # read and sorted into microbatches together, so that memory does not grow with the pairs


class Reference(Protocol):
    """What the loss asks of a reference."""

    def of(self, indices: list[int], batch: Batch) -> Tensor:
        """log π_ref (M,) float32 of the trained tokens of these pairs, which ``batch`` holds in this order."""


class CachedReference:
    """Per-token log-probabilities by pair index, from a safetensors file."""

    def __init__(self, path: Path) -> None:
        tensors = load_file(path)
        self._logps: NDArray[np.float32] = tensors[LOGPS]
        self._offsets: NDArray[np.int64] = tensors[OFFSETS]
        self._place = {int(index): place for place, index in enumerate(tensors[INDEX])}

    def of(self, indices: list[int], batch: Batch) -> Tensor:
        """As they were scored, on the batch's device."""
        known = np.concatenate([self.of_pair(index) for index in indices])
        return to_device(torch.from_numpy(known), batch.ids.device)

    def of_pair(self, index: int) -> NDArray[np.float32]:
        """One pair's trained tokens, chosen then rejected."""
        place = self._place[index]
        return self._logps[self._offsets[place] : self._offsets[place + 1]]


class OnTheFlyReference:
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


def open_references(path: Path, split_name: str) -> CachedReference:
    """The ``train`` or ``test`` split of a ReferenceSet's directory."""
    return CachedReference(split_file(path, split_name))


def score_pairs(
    model: nn.Module, rows: TokenDataset, indices: list[int], layout: Layout, precision: str
) -> dict[str, NDArray[np.generic]]:
    """Log-probabilities of the trained tokens of these pairs, as :func:`flat` stores them."""
    logps: dict[int, Logps] = {}
    for part in iterate_scores(model, rows, indices, layout, precision):
        logps |= part
    return flat(indices, logps)


def iterate_scores(
    model: nn.Module, rows: TokenDataset, indices: list[int], layout: Layout, precision: str
) -> Iterator[dict[int, Logps]]:
    """The log-probabilities of each pair's trained tokens by its index, a microbatch at a time."""
    for start in range(0, len(indices), PAIRS_PER_WINDOW):
        window = indices[start : start + PAIRS_PER_WINDOW]
        items = [branches(rows[index]) for index in window]
        for group in split_microbatches(layout, items, tokens_without_gradients(model)):
            batch = build(layout, [items[place] for place in group], next(model.parameters()).device)
            logps = completion_logps(model, batch, precision).float().cpu().numpy()
            ends = np.cumsum(np.array(batch.counts).reshape(-1, 2).sum(1))
            yield dict(zip((window[place] for place in group), np.split(logps, ends[:-1]), strict=True))


def run(request: ScoreRequest, draft: Draft) -> None:
    """Score the whole test split and, unless it is done on the fly, every pair of the run; publish a ReferenceSet.

    Pairs that an earlier output with the same ``base_key`` holds are copied from there.
    """
    wanted = visited_pairs(request)
    logps = reference_cache.find(draft.store, request.base_key, wanted)
    missing = {name: [index for index in indices if index not in logps[name]] for name, indices in wanted.items()}
    total, copied = sum(map(len, missing.values())), sum(map(len, logps.values()))
    if copied:
        say(f"scoring the reference: {copied:,} pairs are known from earlier runs, {total:,} are left")
    layouts = (
        score_missing(request, missing, logps) if total else reference_cache.layouts(draft.store, request.base_key)
    )
    files = [write_split_logps(draft, name, flat(indices, logps[name])) for name, indices in wanted.items() if indices]
    draft.publish(
        ReferenceSet(
            path=draft.final,
            # Of what the values are, not of their bits: one that was extended is the one that was scored at once.
            fingerprint=fingerprint.of_value([request.base_key, wanted])
            if request.base_key
            else fingerprint.of_files(files, draft.path),
            model=request.model,
            train_pairs=len(wanted["train"]),
            test_pairs=len(wanted["test"]),
            copied_pairs=copied,
            base_key=request.base_key,
            layouts=layouts,
        )
    )


def write_split_logps(draft: Draft, split_name: str, tensors: dict[str, NDArray[np.generic]]) -> Path:
    """The file of a split's log-probabilities."""
    path = split_file(draft.path, split_name)
    save_file(tensors, path)
    return path


def visited_pairs(request: ScoreRequest) -> dict[str, list[int]]:
    """The pairs that a run visits, by split: of ``train`` those of its steps, of ``test`` all."""
    rendered = request.rendered
    return {
        "train": data_order.visited_pairs(rendered.train_pairs, request.train) if request.score_train else [],
        "test": list(range(rendered.test_pairs)),
    }


def score_missing(
    request: ScoreRequest, missing: dict[str, list[int]], logps: dict[str, dict[int, Logps]]
) -> dict[str, Layout]:
    """Open the reference and add its log-probabilities of the missing pairs of each split; returns its layout."""
    train, source = request.train, request.model
    check(train.precision)
    model = load_model(source.path, train.seed, source.trust_remote_code, request.frozen_dtype)
    layout = choose_layout(model, train.layout, request.rendered)
    progress = Progress("scoring the reference", sum(map(len, missing.values())), "pairs")
    for name, indices in missing.items():
        rows = open_split(request.rendered.path, name)
        with repeating(progress.beat):  # a microbatch may take long
            for part in iterate_scores(model, rows, indices, layout, train.precision):
                logps[name] |= part
                progress.advance(len(part))
    return {attention_signature(model): layout}
