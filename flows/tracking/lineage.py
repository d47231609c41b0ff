"""Lineage of a model version, as tags of its run and of itself."""

import subprocess
from pathlib import Path

from prefect.runtime import flow_run

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import Recipe
from dpo_core.records import PairSet


def lineage_tags(recipe: Recipe, pairs: PairSet) -> dict[str, str]:
    """Return data fingerprint, recipe hash, git commit and Prefect flow run; unknown ones are left out."""
    tags = {
        "dpo.data_fingerprint": pairs.fingerprint,
        "dpo.data_source": pairs.source,
        "dpo.recipe_hash": fingerprint.of_value(recipe.model_dump(mode="json")),
        "mlflow.source.git.commit": git_commit(),
        "prefect.flow_run": flow_run.id,
        "prefect.flow_run_url": flow_run.ui_url,
    }
    return {name: str(value) for name, value in tags.items() if value}


def git_commit() -> str | None:
    """Return the commit of the checkout that this code runs from, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
