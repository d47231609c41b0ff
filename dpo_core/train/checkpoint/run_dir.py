"""A run's directory (``log_path``): its name, and what to do when it is already there."""

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from dpo_core.cache import atomic_files, fingerprint
from dpo_core.config.recipe import Recipe
from dpo_core.errors import RecipeError
from dpo_core.stages.train import LENGTHS, NOT_IN_KEY

CONFIG, METRICS, CHECKPOINTS = "config.json", "metrics.jsonl", "checkpoints.jsonl"
DIGEST = "digest"
LOG, SAMPLES, FINAL, ADAPTER = "logs.log", "samples.jsonl", "final", "adapter"

UNFINISHED_CONFIG = f".{CONFIG}.new"  # all that a run leaves that was killed while it wrote its first file


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


def choose_log_path(recipe: Recipe, key: str, store_root: Path) -> Path:
    """The directory of the run with this fingerprint: the given one, that of its unfinished beginning, or a new one."""
    if recipe.train.log_path:
        return recipe.train.log_path.expanduser().resolve()
    pointer = pointer_path(store_root, key)
    if pointer.is_file() and (log_path := Path(pointer.read_text())).is_dir():
        return log_path
    return (recipe.track.runs_dir / run_name(recipe)).expanduser().resolve()


def pointer_path(store_root: Path, key: str) -> Path:
    """Where a run with this fingerprint notes its directory, so that the same command finds it again."""
    return store_root / "train" / f"{key}.begun"


def write_config(path: Path, config: dict[str, Any]) -> None:
    """What a run is, with a digest of itself: ``fingerprint`` of the run, ``origin`` of the one that it extends (or its
    own), ``lineage`` of everything but its length, and the ``recipe``."""
    config = {name: value for name, value in config.items() if name != DIGEST}
    atomic_files.write_text(path / CONFIG, json.dumps(config | {DIGEST: fingerprint.of_value(config)}, indent=1))


def read_config(path: Path) -> dict[str, Any] | None:
    """What :func:`write_config` wrote, None if it is missing or damaged."""
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text())
        digest = config.pop(DIGEST)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return config if digest == fingerprint.of_value(config) else None


def origin_fingerprint(path: Path, lineage: str, key: str) -> str:
    """The fingerprint by which the run in a directory goes from its beginning; ``key`` where there is none."""
    config = read_config(path)
    return str(config["origin"]) if config and config["lineage"] == lineage else key


def read_origin(path: Path) -> str:
    """The same of a run that is there.

    Raises RecipeError when there is none.
    """
    config = read_config(path)
    if config is None:
        raise RecipeError(f"{path} holds no run.", f"A run's directory has its {CONFIG}.", "Give a run's log_path.")
    return str(config["origin"])


def check_unused(recipe: Recipe) -> None:
    """Raises RecipeError when ``log_path`` holds anything that this run may neither continue nor delete.

    A directory that holds this very run, finished or not, is continued, unless the behaviour is raise or delete.
    Changes nothing; what a person on a terminal may decide is left to :func:`delete_other_run`.
    """
    path, behavior = recipe.train.log_path, recipe.train.behavior_if_log_dir_exists
    if path is None or may_continue(recipe, path):
        return
    if behavior == "delete":
        check_is_run(path)
    elif behavior != "ask" or not sys.stdin.isatty():
        raise in_use_error(path, behavior, changed_settings(recipe, path))


def delete_other_run(recipe: Recipe) -> None:
    """Empty ``log_path`` where :func:`check_unused` found another run in it and the behaviour, or a person, says so.

    Raises RecipeError when the person says no.
    """
    path, behavior = recipe.train.log_path, recipe.train.behavior_if_log_dir_exists
    if path is None or may_continue(recipe, path):
        return
    if behavior == "delete" or (behavior == "ask" and user_wants_deletion(path)):
        check_is_run(path)
        shutil.rmtree(path)
        return
    raise in_use_error(path, "raise" if behavior == "ask" else behavior, changed_settings(recipe, path))


def may_continue(recipe: Recipe, path: Path) -> bool:
    """Whether a run may begin in ``path`` as it is: nothing is there, or this very run and it may be continued."""
    if not path.exists() or (path.is_dir() and not {found.name for found in path.iterdir()} - {UNFINISHED_CONFIG}):
        return True
    if recipe.train.behavior_if_log_dir_exists not in ("ask", "resume"):
        return False
    changed = changed_settings(recipe, path)
    return not changed if changed is not None else has_damaged_config(path)


def in_use_error(path: Path, behavior: str, changed: list[str] | None) -> RecipeError:
    """The refusal to touch a directory that is in use."""
    if changed is None:
        return RecipeError(
            f"{path} exists and holds no run.", "A run needs a directory of its own.", "Choose another log_path."
        )
    what = f"with other settings ({', '.join(changed)})" if changed else "of this recipe"
    if behavior == "resume":
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


def user_wants_deletion(path: Path) -> bool:
    """The user's choice on a terminal; no deletion elsewhere."""
    if not sys.stdin.isatty():
        return False
    answer = input(f"{path} holds another run. delete it, or stop? [stop] ").strip().lower()
    return answer in ("d", "delete")


def check_is_run(path: Path) -> None:
    """Raises RecipeError when a directory that would be deleted holds no run."""
    if not (path / CONFIG).is_file():
        raise in_use_error(path, "delete", None)


def changed_settings(recipe: Recipe, path: Path) -> list[str] | None:
    """Names of the settings in which the run in ``path`` differs, but for a greater length; None without a run."""
    config = read_config(path)
    if config is None:
        return None
    before = config["recipe"]
    now = json.loads(recipe.model_dump_json())
    if all(is_no_shorter(now["train"].get(name), before["train"].get(name)) for name in LENGTHS):
        now["train"] |= {name: before["train"].get(name) for name in LENGTHS}
    return compare_settings(before, now)


def is_no_shorter(now: int | None, before: int | None) -> bool:
    """Whether a length is at least what it was; None is without end."""
    return now is None or (before is not None and now >= before)


def has_damaged_config(path: Path) -> bool:
    """Whether a run was here whose configuration is no longer readable."""
    return (path / CONFIG).is_file() and (path / METRICS).is_file()


def compare_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings of data, render, model, warm_start and train that are not the same."""
    sections = ("data", "render", "model", "warm_start", "train")
    return [
        f"{leaf}: {before.get(section, {}).get(leaf)} there, {value} now"
        for section in sections
        for leaf, value in now[section].items()
        if leaf not in NOT_IN_KEY and before.get(section, {}).get(leaf) != value
    ]
