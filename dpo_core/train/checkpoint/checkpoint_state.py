"""Checkpoint state: trainable weights and optimizer moments as safetensors, the rest as JSON; no pickle.

A checkpoint gets its name under ``checkpoints/`` when it is complete. ``state.json`` holds the digests of its files, of
itself, and of the run's journals up to its step. So damage to anything before the step is found.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpo_core.cache import atomic_files, fingerprint
from dpo_core.train.checkpoint import journal
from dpo_core.train.checkpoint.run_dir import CHECKPOINTS, METRICS, SAMPLES

WEIGHTS, OPTIMIZER, RANDOM, STATE = "weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
CHECKPOINT_DIRECTORY = "checkpoints"
ROW = "row"
JOURNALS = (METRICS, SAMPLES)


@dataclass(frozen=True)
class Snapshot:
    """Everything that changes in a run, copied to host memory, where later steps cannot change it.

    ``journals``: length of each journal in bytes. ``facts``: further fields of ``state.json``; of the last step also
    its journal line as ``row``, since the journal gets that line at the export only.
    """

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    random: dict[str, Tensor]
    journals: dict[str, int]
    facts: Mapping[str, Any]


def take_snapshot(
    log_path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer, step: int, facts: Mapping[str, Any]
) -> Snapshot:
    """The run after a step whose line is in the journal."""
    named = trainable_parameters(policy)
    return Snapshot(
        step=step,
        weights={name: host_copy(value) for name, value in named.items()},
        moments=optimizer_moments(named, optimizer),
        random=random_states(),
        journals={name: file_size(log_path / name) for name in JOURNALS},
        facts=facts,
    )


def host_copy(value: Tensor) -> Tensor:
    """A copy in host memory."""
    return value.detach().to("cpu", copy=True).contiguous()


def file_size(path: Path) -> int:
    """Bytes of a file, 0 without one."""
    return path.stat().st_size if path.is_file() else 0


def trainable_parameters(policy: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: value for name, value in policy.named_parameters() if value.requires_grad}


def optimizer_moments(named: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of every parameter as ``<part>|<parameter>``."""
    return {
        f"{part}|{name}": host_copy(value)
        for name, parameter in named.items()
        for part, value in optimizer.state[parameter].items()
    }


def random_states() -> dict[str, Tensor]:
    """States of torch's random generators, of the CPU and of each GPU, (n,) uint8."""
    states = {"cpu": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def write(log_path: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot aside, sync it, rename it, and append it to ``checkpoints.jsonl``; returns its directory.

    Raises OSError when the disk refuses it; earlier checkpoints are not touched then.
    """
    name = f"{snapshot.step:06d}"
    path, aside = log_path / CHECKPOINT_DIRECTORY / name, log_path / CHECKPOINT_DIRECTORY / f".{name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for part, tensors in ((WEIGHTS, snapshot.weights), (OPTIMIZER, snapshot.moments), (RANDOM, snapshot.random)):
            save_file(tensors, aside / part)
            atomic_files.sync(aside / part)
        atomic_files.write_text(
            aside / STATE, json.dumps(with_digest(checkpoint_facts(log_path, snapshot, aside)), indent=1)
        )
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)  # a damaged checkpoint of the same step
    atomic_files.rename(aside, path)
    journal.append(log_path / CHECKPOINTS, {"name": name, "step": snapshot.step, "path": str(path)})
    return path


def checkpoint_facts(log_path: Path, snapshot: Snapshot, aside: Path) -> dict[str, Any]:
    """The content of ``state.json`` without its own digest."""
    files = {part: fingerprint.of_file(aside / part) for part in (WEIGHTS, OPTIMIZER, RANDOM)}
    journals = {
        name: {"bytes": length, "digest": fingerprint.of_beginning(log_path / name, length)}
        for name, length in snapshot.journals.items()
    }
    return {"step": snapshot.step, "files": files, "journals": journals, **snapshot.facts}


def with_digest(facts: dict[str, Any]) -> dict[str, Any]:
    """``facts`` with the digest of themselves."""
    return facts | {"digest": fingerprint.of_value(facts)}


def load(path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore a checkpoint's weights, optimizer moments and random generators, to the bit."""
    named, weights = trainable_parameters(policy), load_file(path / WEIGHTS)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    for key, value in load_file(path / OPTIMIZER).items():
        part, _, name = key.partition("|")
        # AdamW counts its steps on the CPU unless fused on a GPU, where the count lives with the weights.
        optimizer.state[named[name]][part] = value.to(named[name].device)
    for device, generator in load_file(path / RANDOM).items():
        if device == "cpu":
            torch.set_rng_state(generator)
        elif torch.device(device).index < torch.cuda.device_count():
            torch.cuda.set_rng_state(generator, device)


@dataclass(frozen=True)
class LatestCheckpoint:
    """A checkpoint whose files and journals are undamaged. ``state``: its ``state.json``."""

    step: int
    path: Path
    state: dict[str, Any]


def latest(log_path: Path) -> tuple[LatestCheckpoint | None, dict[str, str]]:
    """The newest undamaged checkpoint, and the damage of newer ones by their names.

    Undamaged: its files and the journals' lines before it are as they were when it was written.
    """
    damaged: dict[str, str] = {}
    for path in newest_first(log_path):
        state = read_state(path)
        cause = "its state.json is damaged" if state is None else find_damage(log_path, path, state)
        if state is not None and cause is None:
            return LatestCheckpoint(state["step"], path, state), damaged
        damaged[path.name] = str(cause)
    return None, damaged


def newest_first(log_path: Path) -> list[Path]:
    """Directories of the run's checkpoints, the last step first; those still being written have another name."""
    directory = log_path / CHECKPOINT_DIRECTORY
    paths = directory.iterdir() if directory.is_dir() else []
    return sorted((path for path in paths if path.name.isdigit()), key=lambda path: int(path.name), reverse=True)


def read_state(path: Path) -> dict[str, Any] | None:
    """A checkpoint's ``state.json``; None if it is missing or damaged."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
        return state if with_digest({k: v for k, v in state.items() if k != "digest"}) == state else None
    except (OSError, ValueError, AttributeError):
        return None


def last_step_row(metrics_path: Path, state: dict[str, Any]) -> dict[str, Any] | None:
    """The journal's line of a run's last step; None for the ``state`` of a checkpoint of any other step.

    The line is appended to ``metrics_path`` at the export, after the checkpoint. Before the export it is the row in
    ``state``.
    """
    row: dict[str, Any] | None = state.get(ROW)
    if row is None:
        return None
    with metrics_path.open("rb") as stream:
        stream.seek(state["journals"][METRICS]["bytes"])
        line = stream.readline()
    with suppress(ValueError):
        appended = json.loads(line) if line.endswith(b"\n") else row
        row = appended if appended.get("step") == state["step"] else row
    return row


def find_damage(log_path: Path, path: Path, state: dict[str, Any]) -> str | None:
    """What has changed since the checkpoint in ``path`` was written; None for nothing."""
    for name, digest in state["files"].items():
        if not (path / name).is_file() or fingerprint.of_file(path / name) != digest:
            return f"{name} is damaged"
    for name, journal_then in state["journals"].items():
        if fingerprint.of_beginning(log_path / name, journal_then["bytes"]) != journal_then["digest"]:
            return f"{name} has changed before step {state['step']}"
    return None


def truncate_run(log_path: Path, checkpoint: LatestCheckpoint | None) -> None:
    """Remove everything written after a checkpoint (None: everything), and unfinished files.

    Journals are truncated to their length in bytes at the checkpoint.
    """
    for name in JOURNALS:
        kept = checkpoint.state["journals"][name]["bytes"] if checkpoint else 0
        if file_size(log_path / name) > kept:
            with (log_path / name).open("r+b") as stream:
                stream.truncate(kept)
    directory, last = log_path / CHECKPOINT_DIRECTORY, checkpoint.step if checkpoint else 0
    for path in directory.iterdir() if directory.is_dir() else []:
        if not path.name.isdigit() or int(path.name) > last:
            shutil.rmtree(path, ignore_errors=True)
    for unfinished in log_path.glob(".*.new"):
        unfinished.unlink()
    oldest_first = reversed(newest_first(log_path))
    journal.rewrite(
        log_path / CHECKPOINTS,
        [{"name": path.name, "step": int(path.name), "path": str(path)} for path in oldest_first],
    )
