"""Addresses of servers, whose passwords are for nobody's eyes."""

from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dpo_core.config.recipe import Recipe


def shown(uri: str) -> str:
    """The address without the password that may be in it."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri  # as it is: sqlite:////file would not be put together again
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def public(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values that may be written down."""
    told: dict[str, Any] = recipe.model_dump(mode="json")
    if uri := told["track"]["tracking_uri"]:
        told["track"]["tracking_uri"] = shown(uri)
    return told
