"""``dpo models``, ``dpo promote`` and ``dpo rollback``: what they print."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from dpo_core.errors import RecipeError
from flows.registry import model_admin as registered


def models(name: str | None, tracking_uri: str | None) -> None:
    """A table for each registered model, or for the one that is named."""
    registry, console = registered.open_registry(tracking_uri), Console(highlight=False)
    names = [registered.resolve_model_name(registry, name)] if name else registry.names()
    if not names:
        registered.resolve_model_name(registry, None)
    for one in names:
        console.print(registered.versions_table(registry, one))


def promote(version: str, words: Sequence[str], options: Mapping[str, Any]) -> None:
    """The decision; a version that the gates hold back is an exit code, so that scripts see it.

    Raises RecipeError for ``--force`` without a reason, and for a version that is not promoted.
    """
    if options["force"] and not options["reason"]:
        raise RecipeError("--force comes without a reason.", "Overruling the gates is recorded.", "Add --reason.")
    registry = registered.open_registry(options["tracking_uri"])
    found = registered.find_version(registry, version, options["name"])
    promotion = registered.promote(registry, found, words, options["reason"] if options["force"] else None)
    for name, told in promotion.gates.items():
        print(f"{name.replace('_', ' ')} {told}")
    if not promotion.promoted:
        raise RecipeError(promotion.reason, "", "dpo promote --force --reason … overrules the gates.")
    print(promotion.reason)


def rollback(name: str | None, tracking_uri: str | None, reason: str | None) -> None:
    """Who is the champion now."""
    registry = registered.open_registry(tracking_uri)
    print(registered.rollback(registry, registered.resolve_model_name(registry, name), reason))
