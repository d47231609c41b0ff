"""Where a version comes from: tags of its run and of itself."""

import subprocess
from pathlib import Path

from prefect.runtime import flow_run

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import Recipe
from dpo_core.records import PairSet


def tags(recipe: Recipe, pairs: PairSet) -> dict[str, str]:
    """Data fingerprint, recipe hash, the code's git commit, and the Prefect flow run, as far as each is known."""
    told = {
        "dpo.data_fingerprint": pairs.fingerprint,
        "dpo.data_source": pairs.source,
        "dpo.recipe_hash": fingerprint.of_value(recipe.model_dump(mode="json")),
        "mlflow.source.git.commit": git_commit(),
        "prefect.flow_run": flow_run.id,
        "prefect.flow_run_url": flow_run.ui_url,
    }
    return {name: str(value) for name, value in told.items() if value}


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, or None outside of one."""
    place = Path(__file__).parent
    words = ["git", "-C", str(place), "rev-parse", "HEAD"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()
