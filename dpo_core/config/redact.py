"""Redaction: server addresses and recipes without passwords."""

from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dpo_core.config.recipe import Recipe


def hide_password(uri: str) -> str:
    """The address without user and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri  # unchanged: urlunsplit would break sqlite:////file
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def redacted(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values, without the password of ``tracking_uri``."""
    values: dict[str, Any] = recipe.model_dump(mode="json")
    if uri := values["track"]["tracking_uri"]:
        values["track"]["tracking_uri"] = hide_password(uri)
    return values
