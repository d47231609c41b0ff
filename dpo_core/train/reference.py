"""The reference: scored once, token by token, and kept under the hash of everything it depends on."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from dpo_core import fingerprint
from dpo_core.model.load import load_model
from dpo_core.records import ReferenceSet
from dpo_core.render.rendered import Rows, open_split
from dpo_core.requests import ScoreRequest
from dpo_core.store import Draft
from dpo_core.train import order
from dpo_core.train.logps import completion_logps
from dpo_core.train.packing import microbatches, pad

# Where each scored pair's tokens begin in the flat ``logps``; its two sides follow each other, chosen first.
INDEX, OFFSETS, LOGPS = "index", "offsets", "logps"


class References:
    """Per-token log-probabilities by pair index, from a safetensors file."""

    def __init__(self, path: Path) -> None:
        tensors = load_file(path)
        self._logps: NDArray[np.float32] = tensors[LOGPS]
        self._offsets: NDArray[np.int64] = tensors[OFFSETS]
        self._place = {int(index): place for place, index in enumerate(tensors[INDEX])}

    def padded(self, indices: list[int], trained: Tensor) -> Tensor:
        """The logps of a padded batch of these pairs: float32, of ``trained``'s shape (2B, T − 1), 0 where untrained.

        The batch's rows are :func:`dpo_core.train.packing.pad`'s: all chosen ones, then all rejected ones.
        """
        chosen_counts = trained[: len(indices)].sum(-1).tolist()
        runs = [self.of_pair(index) for index in indices]
        chosen = [run[:count] for run, count in zip(runs, chosen_counts, strict=True)]
        rejected = [run[count:] for run, count in zip(runs, chosen_counts, strict=True)]
        flat = torch.from_numpy(np.concatenate(chosen + rejected)).to(trained.device)
        return torch.zeros(trained.shape, device=trained.device).masked_scatter(trained, flat)

    def of_pair(self, index: int) -> NDArray[np.float32]:
        """One pair's trained tokens, chosen then rejected."""
        place = self._place[index]
        return self._logps[self._offsets[place] : self._offsets[place + 1]]


def open_references(path: Path, split: str) -> References:
    """The ``train`` or ``test`` split of a ReferenceSet's directory."""
    return References(path / f"{split}.safetensors")


@torch.no_grad()
def score(
    model: nn.Module, rows: Rows, indices: list[int], token_budget: int, precision: str
) -> dict[str, NDArray[np.generic]]:
    """Log-probabilities of the trained tokens of these pairs, flat, with offsets (N + 1,) and pair indices (N,)."""
    device = next(model.parameters()).device
    runs: dict[int, NDArray[np.float32]] = {}
    for group in microbatches([rows[index].longest for index in indices], token_budget):
        batch = pad([rows[indices[place]] for place in group]).to(device)
        logps = completion_logps(model, batch, precision).cpu().numpy()
        trained = batch.trained.cpu().numpy()
        for row, place in enumerate(group):
            sides = (row, row + len(group))
            runs[place] = np.concatenate([logps[side][trained[side]] for side in sides])
    lengths = [len(runs[place]) for place in range(len(indices))]
    return {
        INDEX: np.array(indices, dtype=np.int64),
        OFFSETS: np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        LOGPS: np.concatenate([runs[place] for place in range(len(indices))]).astype(np.float32),
    }


def run(request: ScoreRequest, draft: Draft) -> None:
    """Score every pair that the run needs and the whole test split; publish a ReferenceSet."""
    train, rendered = request.train, request.rendered
    model = load_model(request.model.path, train.seed, request.model.trust_remote_code)
    wanted = {
        "train": order.needed(rendered.train_pairs, train),
        "test": list(range(rendered.test_pairs)),
    }
    for split, indices in wanted.items():
        rows = open_split(rendered.path, split)
        tensors = score(model, rows, indices, train.token_budget, train.precision)
        save_file(tensors, draft.path / f"{split}.safetensors")
    files = [draft.path / f"{split}.safetensors" for split in wanted]
    draft.publish(
        ReferenceSet(
            path=draft.final,
            fingerprint=fingerprint.of_files(files, draft.path),
            model_fingerprint=request.model.fingerprint,
            train_pairs=len(wanted["train"]),
            test_pairs=len(wanted["test"]),
        )
    )
