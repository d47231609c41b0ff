"""Reference log-probabilities (reference_logps): scored once for each token and stored, or computed in every step.

Runs share stored pairs if they have the same reference model and numerics: a run copies those pairs and scores only
the missing ones (:mod:`dpo_core.cache.reference_cache`). Other pairs in a microbatch change a log-probability by
rounding only (1e-6 nats per token in float32). So copied values equal newly scored ones, and the loss at step 0 is
ln 2, both within rounding.
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
from dpo_core.system.device import check_precision
from dpo_core.system.progress import Progress, repeating, say
from dpo_core.train import data_order
from dpo_core.train.batching.batch_layout import attention_signature, choose_layout
from dpo_core.train.batching.memory_estimate import tokens_without_gradients
from dpo_core.train.batching.packing import (
    Batch,
    Layout,
    branches,
    build,
    split_microbatches,
    to_device,
    tokens_per_pair,
)
from dpo_core.train.logps import completion_logps

PAIRS_PER_WINDOW = 4096  # read and sorted into microbatches together, so that memory does not grow with the pairs


class Reference(Protocol):
    """A source of reference log-probabilities."""

    def reference_logps(self, indices: list[int], batch: Batch) -> Tensor:
        """log π_ref of the trained tokens of these pairs, (M,) float32. ``batch`` holds the pairs in this order."""


class CachedReference:
    """Stored per-token log-probabilities, by pair index, from a safetensors file."""

    def __init__(self, path: Path) -> None:
        tensors = load_file(path)
        self._logps: NDArray[np.float32] = tensors[LOGPS]
        self._offsets: NDArray[np.int64] = tensors[OFFSETS]
        self._position = {int(index): position for position, index in enumerate(tensors[INDEX])}

    def reference_logps(self, indices: list[int], batch: Batch) -> Tensor:
        """The stored values, (M,) float32, on the batch's device. Raises KeyError for a pair that was not scored."""
        logps = np.concatenate([self.logps_of_pair(index) for index in indices])
        return to_device(torch.from_numpy(logps), batch.ids.device)

    def logps_of_pair(self, index: int) -> NDArray[np.float32]:
        """Log-probabilities of a pair's trained tokens, chosen then rejected, (m,) float32."""
        position = self._position[index]
        return self._logps[self._offsets[position] : self._offsets[position + 1]]


class OnTheFlyReference:
    """A reference model that scores each microbatch when it is needed, with any adapters disabled. Stores nothing."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.model, self.precision = model, precision

    def reference_logps(self, indices: list[int], batch: Batch) -> Tensor:
        """The model's log-probabilities of the batch, (M,) float32."""
        with without_adapters(self.model):
            return completion_logps(self.model, batch, self.precision)


def without_adapters(model: nn.Module) -> AbstractContextManager[None]:
    """Disable a peft model's adapters inside the block; does nothing for other models."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def open_references(path: Path, split_name: str) -> CachedReference:
    """The reference log-probabilities of the ``train`` or ``test`` split in a ReferenceSet's directory."""
    return CachedReference(split_file(path, split_name))


def score_pairs(
    model: nn.Module, rows: TokenDataset, indices: list[int], layout: Layout, precision: str
) -> dict[str, NDArray[np.generic]]:
    """Log-probabilities of the trained tokens of these pairs, as the tensors that :func:`flat` makes."""
    logps: dict[int, Logps] = {}
    for part in iterate_scores(model, rows, indices, layout, precision):
        logps |= part
    return flat(indices, logps)


def iterate_scores(
    model: nn.Module, rows: TokenDataset, indices: list[int], layout: Layout, precision: str
) -> Iterator[dict[int, Logps]]:
    """Score microbatch by microbatch: the log-probabilities (m,) float32 of each pair's trained tokens, by index."""
    for start in range(0, len(indices), PAIRS_PER_WINDOW):
        window = indices[start : start + PAIRS_PER_WINDOW]
        items = [branches(rows[index]) for index in window]
        for group in split_microbatches(layout, items, tokens_without_gradients(model)):
            batch = build(layout, [items[position] for position in group], next(model.parameters()).device)
            logps = completion_logps(model, batch, precision).float().cpu().numpy()
            ends = np.cumsum(tokens_per_pair(batch.counts))
            yield dict(zip((window[position] for position in group), np.split(logps, ends[:-1]), strict=True))


def run(request: ScoreRequest, draft: Draft) -> None:
    """Score the test split and, with a stored reference, every training pair of the run; publish a ReferenceSet.

    Pairs in earlier outputs with the same ``base_key`` are copied.
    """
    pairs = visited_pairs(request)
    logps = reference_cache.find(draft.store, request.base_key, pairs)
    missing = {name: [index for index in indices if index not in logps[name]] for name, indices in pairs.items()}
    total, copied = sum(map(len, missing.values())), sum(map(len, logps.values()))
    if copied:
        say(f"scoring the reference: {copied:,} pairs come from earlier runs, {total:,} are left")
    layouts = (
        score_missing(request, missing, logps) if total else reference_cache.layouts(draft.store, request.base_key)
    )
    files = [write_split_logps(draft, name, flat(indices, logps[name])) for name, indices in pairs.items() if indices]
    draft.publish(
        ReferenceSet(
            path=draft.final,
            # Of what was scored, not of its bits: an extended set is the same as one scored in a single run.
            fingerprint=fingerprint.of_value([request.base_key, pairs])
            if request.base_key
            else fingerprint.of_files(files, draft.path),
            model=request.model,
            train_pairs=len(pairs["train"]),
            test_pairs=len(pairs["test"]),
            copied_pairs=copied,
            base_key=request.base_key,
            layouts=layouts,
        )
    )


def write_split_logps(draft: Draft, split_name: str, tensors: dict[str, NDArray[np.generic]]) -> Path:
    """Write a split's log-probabilities; returns the file."""
    path = split_file(draft.path, split_name)
    save_file(tensors, path)
    return path


def visited_pairs(request: ScoreRequest) -> dict[str, list[int]]:
    """Indices of the pairs that a run needs, by split: of ``train`` those of its steps, of ``test`` all."""
    rendered = request.rendered
    return {
        "train": data_order.visited_pairs(rendered.train_pairs, request.train) if request.score_train else [],
        "test": list(range(rendered.test_pairs)),
    }


def score_missing(
    request: ScoreRequest, missing: dict[str, list[int]], logps: dict[str, dict[int, Logps]]
) -> dict[str, Layout]:
    """Load the reference and add its log-probabilities of the missing pairs to ``logps``, both by split.

    Returns the layout by the model's attention signature.
    """
    train, source = request.train, request.model
    check_precision(train.precision)
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
