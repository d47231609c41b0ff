"""Checkpoints to continue from: trainable weights and optimizer as safetensors, the rest as JSON; no pickle."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpo_core import fingerprint
from dpo_core.train import journal
from dpo_core.train.run_dir import CHECKPOINTS, METRICS

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
FOLDER = "checkpoints"


def save(log_path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Path:
    """Write the checkpoint of a step aside, make it durable, rename it, and note it in ``checkpoints.jsonl``."""
    name = f"{step:06d}"
    path, aside = log_path / FOLDER / name, log_path / FOLDER / f".{name}"
    if path.exists():
        return path
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    named = trainable(policy)
    save_file({key: value.detach().cpu().contiguous() for key, value in named.items()}, aside / WEIGHTS)
    save_file(moments(named, optimizer), aside / OPTIMIZER)
    digests = {part: fingerprint.of_file(aside / part) for part in (WEIGHTS, OPTIMIZER)}
    (aside / STATE).write_text(json.dumps({"step": step, "files": digests}))
    for part in aside.iterdir():
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
    aside.rename(path)
    journal.append(log_path / CHECKPOINTS, {"name": name, "step": step, "path": str(path)})
    return path


def trainable(policy: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: value for name, value in policy.named_parameters() if value.requires_grad}


def moments(named: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of every parameter as ``<part>|<parameter>``."""
    return {
        f"{part}|{name}": value.detach().cpu().contiguous().clone()
        for name, parameter in named.items()
        for part, value in optimizer.state[parameter].items()
    }


def load(path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and moments back, to the bit."""
    named, weights = trainable(policy), load_file(path / WEIGHTS)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    for key, value in load_file(path / OPTIMIZER).items():
        part, _, name = key.partition("|")
        # AdamW counts its steps on the CPU unless fused on a GPU, where the count lives with the weights.
        optimizer.state[named[name]][part] = value.to(named[name].device)


def latest(log_path: Path) -> tuple[int, Path] | None:
    """The last whole checkpoint whose steps the journal holds, or None."""
    steps = {row["step"] for row in journal.read(log_path / METRICS)}
    for row in reversed(journal.read(log_path / CHECKPOINTS)):
        path, step = log_path / FOLDER / row["name"], row["step"]
        if whole(path) and steps.issuperset(range(1, step + 1)):
            return step, path
    return None


def whole(path: Path) -> bool:
    """Whether every file of a checkpoint has the content that was written."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
        return all(fingerprint.of_file(path / name) == digest for name, digest in state["files"].items())
    except (OSError, ValueError, KeyError):
        return False
