"""A run's directory (``log_path``): its name, and what to do when it is already there."""

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from dpo_core import durable, fingerprint
from dpo_core.errors import RecipeError
from dpo_core.recipe import Recipe

CONFIG, METRICS, CHECKPOINTS = "config.json", "metrics.jsonl", "checkpoints.jsonl"
DIGEST = "digest"
LOG, SAMPLES, FINAL, ADAPTER = "logs.log", "samples.jsonl", "final", "adapter"

NOT_YET = f".{CONFIG}.new"  # all that a run leaves that was killed while it wrote its first file

# Settings that say where a run goes, how it is shown and kept, and not what it computes.
ELSEWHERE = {
    "log_path",
    "behavior_if_log_dir_exists",
    "show_every",
    "save_every",
    "save_every_minutes",
    "keep_checkpoints",
    "best_metric",
    "on_save_error",
    "max_minutes",
    "step_timeout_minutes",
}
# Settings of which a run can be given more when it is finished.
LENGTHS = {"num_epochs", "max_steps"}


def run_name(recipe: Recipe) -> str:
    """``dataset-model-lr-batch-time``, safe as a file name."""
    parts = [
        Path(recipe.data.dataset).name.split(".")[0],
        Path(recipe.model.model_name or "model").name,
        f"lr{recipe.train.learning_rate:g}",
        f"batch{recipe.train.batch_size}",
        time.strftime("%Y%m%d-%H%M%S"),
    ]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))


def choose(recipe: Recipe, key: str, store_root: Path) -> Path:
    """The directory of the run with this fingerprint: the given one, that of its unfinished beginning, or a new one."""
    if recipe.train.log_path:
        return recipe.train.log_path.expanduser().resolve()
    begun = pointer(store_root, key)
    if begun.is_file() and (known := Path(begun.read_text())).is_dir():
        return known
    return (recipe.track.runs_dir / run_name(recipe)).expanduser().resolve()


def pointer(store_root: Path, key: str) -> Path:
    """Where a run with this fingerprint notes its directory, so that the same command finds it again."""
    return store_root / "train" / f"{key}.begun"


def write_config(path: Path, told: dict[str, Any]) -> None:
    """What a run is, with a digest of itself: ``fingerprint`` of the run, ``origin`` of the one that it extends (or its
    own), ``lineage`` of everything but its length, and the ``recipe``."""
    told = {name: value for name, value in told.items() if name != DIGEST}
    durable.write_text(path / CONFIG, json.dumps(told | {DIGEST: fingerprint.of_value(told)}, indent=1))


def read_config(path: Path) -> dict[str, Any] | None:
    """What :func:`write_config` wrote, None if it is missing or damaged."""
    try:
        told: dict[str, Any] = json.loads((path / CONFIG).read_text())
        digest = told.pop(DIGEST)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return told if digest == fingerprint.of_value(told) else None


def origin(path: Path, lineage: str, key: str) -> str:
    """The fingerprint by which the run in a directory goes from its beginning; ``key`` where there is none."""
    told = read_config(path)
    return str(told["origin"]) if told and told["lineage"] == lineage else key


def origin_of(path: Path) -> str:
    """The same of a run that is there.

    Raises RecipeError when there is none.
    """
    told = read_config(path)
    if told is None:
        raise RecipeError(f"{path} holds no run.", f"A run's directory has its {CONFIG}.", "Give a run's log_path.")
    return str(told["origin"])


def settle(recipe: Recipe) -> None:
    """Make sure that ``log_path`` may be used, before anything else is done.

    A directory that holds this very run, finished or not, is continued, unless the behaviour is raise or delete.
    Raises RecipeError when it holds anything else and the behaviour is not delete.
    """
    path = recipe.train.log_path
    if (
        path is None
        or not path.exists()
        or (path.is_dir() and not {found.name for found in path.iterdir()} - {NOT_YET})
    ):
        return
    behaviour: str = recipe.train.behavior_if_log_dir_exists
    changed = differences(recipe, path)
    if behaviour in ("ask", "resume") and (not changed if changed is not None else damaged(path)):
        return
    if behaviour == "ask" and sys.stdin.isatty():
        behaviour = asked(path)
    if behaviour == "delete":
        delete(path)
        return
    raise exists(path, behaviour, changed)


def exists(path: Path, behaviour: str, changed: list[str] | None) -> RecipeError:
    """The refusal to touch a directory that is in use."""
    if changed is None:
        return RecipeError(
            f"{path} exists and holds no run.", "A run needs a directory of its own.", "Choose another log_path."
        )
    what = f"with other settings ({', '.join(changed)})" if changed else "of this recipe"
    if behaviour == "resume":
        return RecipeError(
            f"{path} holds a run {what}.",
            "Only the same run can be resumed.",
            "Set these back, or choose another log_path.",
        )
    return RecipeError(
        f"{path} holds a run {what}.",
        "An existing run is never overwritten unasked.",
        "Choose another log_path, or behavior_if_log_dir_exists=delete" + ("." if changed else " or =resume."),
    )


def asked(path: Path) -> str:
    """The user's choice on a terminal."""
    answer = input(f"{path} holds another run. delete it, or stop? [stop] ").strip().lower()
    return "delete" if answer in ("d", "delete") else "raise"


def delete(path: Path) -> None:
    """Remove a run's directory, and nothing that is not one.

    Raises RecipeError when the directory holds no run.
    """
    if not (path / CONFIG).is_file():
        raise exists(path, "delete", None)
    shutil.rmtree(path)


def differences(recipe: Recipe, path: Path) -> list[str] | None:
    """Names of the settings in which the run in ``path`` differs, but for a greater length; None without a run."""
    told = read_config(path)
    if told is None:
        return None
    before = told["recipe"]
    now = json.loads(recipe.model_dump_json())
    if all(reaches(now["train"].get(name), before["train"].get(name)) for name in LENGTHS):
        now["train"] |= {name: before["train"].get(name) for name in LENGTHS}
    return changes(before, now)


def reaches(now: int | None, before: int | None) -> bool:
    """Whether a length is at least what it was; None is without end."""
    return now is None or (before is not None and now >= before)


def damaged(path: Path) -> bool:
    """Whether a run was here whose configuration is no longer readable."""
    return (path / CONFIG).is_file() and (path / METRICS).is_file()


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings of data, render, model, warm_start and train that are not the same."""
    sections = ("data", "render", "model", "warm_start", "train")
    return [
        f"{leaf}: {before.get(section, {}).get(leaf)} there, {value} now"
        for section in sections
        for leaf, value in now[section].items()
        if leaf not in ELSEWHERE and before.get(section, {}).get(leaf) != value
    ]
