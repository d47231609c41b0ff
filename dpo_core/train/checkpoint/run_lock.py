"""Run lock: one process at a time trains in a ``log_path``, and only the run that its ``config.json`` describes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo_core.cache import atomic_files
from dpo_core.errors import RecipeError
from dpo_core.stages.train import TrainRequest
from dpo_core.train.checkpoint import checkpoint_state, run_dir

KEPT_BY_EXTENSION = ("token_budget",)  # found by the run itself: its extension goes on with the same value


@contextmanager
def lock_run_dir(request: TrainRequest, pointer: Path) -> Iterator[None]:
    """Lock ``log_path`` inside the block, with its ``config.json`` written and its path noted in the file ``pointer``.

    Raises RecipeError when another process holds the lock, or when the directory holds another run.
    """
    log_path = request.log_path
    log_path.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_files.locked(log_path, wait=False):
            config = run_dir.read_config(log_path)
            if config is None:
                check_lost_config(log_path, request)
            else:
                check_same_run(config, request)
            write_own_config(config, request)
            atomic_files.write_text(pointer, str(log_path))
            yield
    except BlockingIOError:
        raise RecipeError(
            f"Another process is training in {log_path}.",
            "A run's directory belongs to one process at a time.",
            "Wait for it to end, or choose another log_path.",
        ) from None


def check_lost_config(log_path: Path, request: TrainRequest) -> None:
    """Raises RecipeError when a damaged ``config.json`` is there and the checkpoints are not of this run's lineage."""
    if not (log_path / run_dir.CONFIG).exists():
        return
    states = [checkpoint_state.read_state(path) for path in checkpoint_state.newest_first(log_path)]
    same_lineage = all(state["lineage"] == request.lineage for state in states if state)
    if not same_lineage or not (log_path / run_dir.METRICS).is_file():
        raise other_run_error(log_path, "a run whose config.json is damaged", request.fingerprint)


def check_same_run(config: dict[str, Any], request: TrainRequest) -> None:
    """Raises RecipeError when the directory's ``config`` is of another lineage."""
    if config["lineage"] != request.lineage:
        found = f"run {config['fingerprint']}{describe_changes(config, request)}"
        raise other_run_error(request.log_path, found, request.fingerprint)


def write_own_config(config: dict[str, Any] | None, request: TrainRequest) -> None:
    """Write ``config.json`` of a new run or of an extension. ``config``: the directory's own (None: there is none)."""
    if config is not None and config["fingerprint"] == request.fingerprint:
        return
    own = {
        "fingerprint": request.fingerprint,
        "lineage": request.lineage,
        "origin": config["origin"] if config else request.fingerprint,
        "recipe": request.recipe,
        "reads": input_fingerprints(request),
    }
    kept = {name: config[name] for name in KEPT_BY_EXTENSION if name in config} if config else {}
    run_dir.write_config(request.log_path, own | kept)


def input_fingerprints(request: TrainRequest) -> dict[str, str]:
    """Fingerprints of a run's inputs besides its settings; the path of a hub model names its commit."""
    return {
        "data or rendering": request.rendered.fingerprint,
        "renderer": request.rendered.renderer_name,
        "initial weights": request.model.fingerprint,
        "reference": request.reference.model.fingerprint,
        "model_path": str(request.model.path),
    }


def describe_changes(config: dict[str, Any], request: TrainRequest) -> str:
    """The inputs that differ from those in ``config``, in brackets for a message; empty if only settings differ."""
    before, now = config.get("reads", {}), input_fingerprints(request)
    changed = [name for name, value in now.items() if name != "model_path" and before.get(name) != value]
    if not changed and config["recipe"] == request.recipe:
        return " (made by another version of this code)"
    return f" (with other {', '.join(changed)})" if changed else ""


def other_run_error(log_path: Path, found: str, fingerprint: str) -> RecipeError:
    """The error for a directory that holds another run. ``fingerprint``: of the run that was to be trained."""
    return RecipeError(
        f"{log_path} holds {found}, and this one is {fingerprint}.",
        "A run is continued with the same settings, data, weights and reference.",
        "Choose another log_path, or behavior_if_log_dir_exists=delete.",
    )
