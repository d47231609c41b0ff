"""Model lookup by name: a directory, a hub id, or a name in a model registry.

A registry is an entry point of the group ``dpo_core.models``: a function from a name to a directory, or to None for a
name that it does not have.
"""

from importlib.metadata import entry_points
from pathlib import Path

from dpo_core.errors import RecipeError
from dpo_core.model.locate import locate

GROUP = "dpo_core.models"


def find_model(name: str, revision: str | None = None) -> Path:
    """The directory of a model: the local one of this name, else a registry's (``models:/<name>@<alias>``,
    ``models:/<name>/<version>``, or the name alone), else the hub's.

    Raises RecipeError when no model has this name.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve()
    if not name.startswith((".", "/", "~")) and (":" in name or "/" not in name):
        path = find_registered(name)
        if path is not None:
            return path
        raise RecipeError(
            f"There is no model {name!r}.",
            "A model is a directory, a hub id (owner/name), or a registered one (models:/<name>@champion).",
            "Check the name, and MLFLOW_TRACKING_URI for a registered one.",
        )
    return locate(name, revision)


def find_registered(name: str) -> Path | None:
    """The directory of a registered model, None when no registry has this name."""
    for entry in entry_points(group=GROUP):
        path: Path | None = entry.load()(name)
        if path is not None:
            return path
    return None
