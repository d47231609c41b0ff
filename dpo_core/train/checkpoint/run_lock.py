"""A run's directory becomes this run's: locked, and sure to hold nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo_core.cache import atomic_files
from dpo_core.cache.store import Draft
from dpo_core.errors import RecipeError
from dpo_core.stages.train import TrainRequest
from dpo_core.train.checkpoint import checkpoint_state, run_dir

KEPT_BY_EXTENSION = ("token_budget",)  # what the run found out for itself: an extension goes on with it


@contextmanager
def lock_run_dir(request: TrainRequest, draft: Draft) -> Iterator[None]:
    """Hold ``log_path`` alone, with its ``config.json`` written and its place noted for a later continuation.

    Raises RecipeError when another process holds it, or when it holds another run.
    """
    request.log_path.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_files.locked(request.log_path, wait=False):
            claim_config(request)
            atomic_files.write_text(
                run_dir.pointer_path(draft.final.parent.parent, request.fingerprint), str(request.log_path)
            )
            yield
    except BlockingIOError:
        raise RecipeError(
            f"Another process is training in {request.log_path}.",
            "A run's directory belongs to one process at a time.",
            "Wait for it to end, or choose another log_path.",
        ) from None


def claim_config(request: TrainRequest) -> None:
    """Make the configuration that of this run.

    Raises RecipeError when it is that of a run that this one does not continue.
    """
    path = request.log_path
    there = run_dir.read_config(path)
    if there is None and (path / run_dir.CONFIG).exists() and not ours(path, request.lineage):
        raise other_run_error(path, "a run whose config.json is damaged", request)
    if there is not None and there["lineage"] != request.lineage:
        raise other_run_error(path, f"run {there['fingerprint']}{describe_changes(there, request)}", request)
    if there is None or there["fingerprint"] != request.fingerprint:
        told = {
            "fingerprint": request.fingerprint,
            "lineage": request.lineage,
            "origin": there["origin"] if there else request.fingerprint,
            "recipe": request.recipe,
            "reads": input_fingerprints(request),
        }
        kept = {name: there[name] for name in KEPT_BY_EXTENSION if name in there} if there else {}
        run_dir.write_config(path, told | kept)


def input_fingerprints(request: TrainRequest) -> dict[str, str]:
    """What a run depends on beside its settings, each by its fingerprint; a hub model's path names its commit."""
    return {
        "data or rendering": request.rendered.fingerprint,
        "renderer": request.rendered.renderer_name,
        "initial weights": request.model.fingerprint,
        "reference": request.reference.model.fingerprint,
        "model_path": str(request.model.path),
    }


def describe_changes(there: dict[str, Any], request: TrainRequest) -> str:
    """What of it is not as it was, for a message."""
    before = there.get("reads", {})
    changed = [
        name
        for name, value in input_fingerprints(request).items()
        if name != "model_path" and before.get(name) != value
    ]
    if not changed and there["recipe"] == request.recipe:
        return " (made by another version of this code)"
    return f" (with other {', '.join(changed)})" if changed else ""


def ours(path: Path, lineage: str) -> bool:
    """Whether the checkpoints of a run that lost its configuration are of this lineage; true when it has none yet."""
    states = [checkpoint_state.read_state(found) for found in checkpoint_state.newest_first(path)]
    return (path / run_dir.METRICS).is_file() and all(state["lineage"] == lineage for state in states if state)


def other_run_error(path: Path, what: str, request: TrainRequest) -> RecipeError:
    """The refusal to continue another run."""
    return RecipeError(
        f"{path} holds {what}, and this one is {request.fingerprint}.",
        "A run is continued with the same settings, data, weights and reference.",
        "Choose another log_path, or behavior_if_log_dir_exists=delete.",
    )
