"""Checkpoints to continue from: trainable weights and optimizer as safetensors, the rest as JSON; no pickle.

A directory under ``checkpoints/`` that has its name is whole. ``state.json`` holds the digests of its files, of itself,
and of the run's journal as it was then, so that damage anywhere before the step is noticed.
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
    """Everything that changes in a run, copied to host memory: nothing that the next step does can reach it.

    ``journals``: how many bytes each journal had. ``facts``: what the run is, for a reader of ``state.json``, and of
    the last step, whose line the journal gets when the model is exported, that line so far (``row``).
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
    """The run as it is after a step whose line is in the journal."""
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
    """torch's generators, of the CPU and of each GPU, (n,) uint8."""
    states = {"cpu": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def write(log_path: Path, held: Snapshot) -> Path:
    """Write a snapshot aside, make it durable, rename it, and note it in ``checkpoints.jsonl``.

    Raises OSError when the disk does not take it; nothing that was there is touched then.
    """
    name = f"{held.step:06d}"
    path, aside = log_path / CHECKPOINT_DIRECTORY / name, log_path / CHECKPOINT_DIRECTORY / f".{name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for part, tensors in ((WEIGHTS, held.weights), (OPTIMIZER, held.moments), (RANDOM, held.random)):
            save_file(tensors, aside / part)
            atomic_files.sync(aside / part)
        atomic_files.write_text(
            aside / STATE, json.dumps(with_digest(checkpoint_facts(log_path, held, aside)), indent=1)
        )
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)  # one of this step that was found damaged
    atomic_files.rename(aside, path)
    journal.append(log_path / CHECKPOINTS, {"name": name, "step": held.step, "path": str(path)})
    return path


def checkpoint_facts(log_path: Path, held: Snapshot, aside: Path) -> dict[str, Any]:
    """What ``state.json`` says, but for its own digest."""
    files = {part: fingerprint.of_file(aside / part) for part in (WEIGHTS, OPTIMIZER, RANDOM)}
    journals = {
        name: {"bytes": length, "digest": fingerprint.of_beginning(log_path / name, length)}
        for name, length in held.journals.items()
    }
    return {"step": held.step, "files": files, "journals": journals, **held.facts}


def with_digest(told: dict[str, Any]) -> dict[str, Any]:
    """The same with a digest of itself."""
    return told | {"digest": fingerprint.of_value(told)}


def load(path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights, moments and generators back, to the bit."""
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
    """A checkpoint that can be continued from, and newer ones that cannot, by name and reason."""

    step: int
    path: Path
    state: dict[str, Any]


def latest(log_path: Path) -> tuple[LatestCheckpoint | None, dict[str, str]]:
    """The newest whole checkpoint whose journal still has what it had then; and what is wrong with newer ones."""
    wrong: dict[str, str] = {}
    for path in newest_first(log_path):
        told = read_state(path)
        cause = "its state.json is damaged" if told is None else find_damage(log_path, path, told)
        if told is not None and cause is None:
            return LatestCheckpoint(told["step"], path, told), wrong
        wrong[path.name] = str(cause)
    return None, wrong


def newest_first(log_path: Path) -> list[Path]:
    """The run's checkpoints by step, the last first; what is being written has no name yet."""
    folder = log_path / CHECKPOINT_DIRECTORY
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name), reverse=True)


def read_state(path: Path) -> dict[str, Any] | None:
    """A checkpoint's ``state.json``, None if it is not as it was written."""
    try:
        told: dict[str, Any] = json.loads((path / STATE).read_text())
        return told if with_digest({k: v for k, v in told.items() if k != "digest"}) == told else None
    except (OSError, ValueError, AttributeError):
        return None


def last_step_row(log_path: Path, found: LatestCheckpoint) -> dict[str, Any] | None:
    """The journal's line of a run's last step, which comes after its checkpoint: as it was written when the model was
    exported or, where it was not, as training left it. None for a checkpoint of any other step."""
    row: dict[str, Any] | None = found.state.get(ROW)
    if row is None:
        return None
    with (log_path / METRICS).open("rb") as stream:
        stream.seek(found.state["journals"][METRICS]["bytes"])
        line = stream.readline()
    with suppress(ValueError):
        told = json.loads(line) if line.endswith(b"\n") else row
        row = told if told.get("step") == found.step else row
    return row


def find_damage(log_path: Path, path: Path, told: dict[str, Any]) -> str | None:
    """What has changed since a checkpoint was written, None for nothing."""
    for name, digest in told["files"].items():
        if not (path / name).is_file() or fingerprint.of_file(path / name) != digest:
            return f"{name} is damaged"
    for name, had in told["journals"].items():
        if fingerprint.of_beginning(log_path / name, had["bytes"]) != had["digest"]:
            return f"{name} has changed before step {told['step']}"
    return None


def truncate_run(log_path: Path, found: LatestCheckpoint | None) -> None:
    """Take out what came after a checkpoint, and what was being written: of the journals to the byte.

    Without a checkpoint that is everything.
    """
    for name in JOURNALS:
        kept = found.state["journals"][name]["bytes"] if found else 0
        if file_size(log_path / name) > kept:
            with (log_path / name).open("r+b") as stream:
                stream.truncate(kept)
    folder, last = log_path / CHECKPOINT_DIRECTORY, found.step if found else 0
    for path in folder.iterdir() if folder.is_dir() else []:
        if not path.name.isdigit() or int(path.name) > last:
            shutil.rmtree(path, ignore_errors=True)
    for left in log_path.glob(".*.new"):
        left.unlink()
    known = reversed(newest_first(log_path))
    journal.rewrite(
        log_path / CHECKPOINTS, [{"name": path.name, "step": int(path.name), "path": str(path)} for path in known]
    )
