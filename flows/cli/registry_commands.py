"""Output of the registry commands ``dpo models``, ``dpo promote`` and ``dpo rollback``."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from dpo_core.errors import RecipeError
from flows.registry import model_admin


def models(name: str | None, tracking_uri: str | None) -> None:
    """Print a table of versions for each registered model, or for the model ``name``.

    Raises RecipeError when there is no such model, or none at all.
    """
    registry, console = model_admin.open_registry(tracking_uri), Console(highlight=False)
    names = [model_admin.resolve_model_name(registry, name)] if name else registry.names()
    if not names:
        model_admin.resolve_model_name(registry, None)
    for model in names:
        console.print(model_admin.versions_table(registry, model))


def promote(version: str, words: Sequence[str], options: Mapping[str, Any]) -> None:
    """Promote a version and print the verdict of each gate.

    Raises RecipeError for ``--force`` without a reason, and for a version that is not promoted, so that scripts see
    an exit code.
    """
    if options["force"] and not options["reason"]:
        raise RecipeError(
            "--force is given without a reason.",
            "Overruling the gates is recorded with its reason.",
            "Add --reason TEXT.",
        )
    registry = model_admin.open_registry(options["tracking_uri"])
    model_version = model_admin.find_version(registry, version, options["name"])
    promotion = model_admin.promote(registry, model_version, words, options["reason"] if options["force"] else None)
    for name, verdict in promotion.gates.items():
        print(f"{name.replace('_', ' ')} {verdict}")
    if not promotion.promoted:
        raise RecipeError(promotion.reason, "", "To overrule the gates, run dpo promote VERSION --force --reason TEXT.")
    print(promotion.reason)


def rollback(name: str | None, tracking_uri: str | None, reason: str | None) -> None:
    """Move the alias back and print which version is the champion now."""
    registry = model_admin.open_registry(tracking_uri)
    print(model_admin.rollback(registry, model_admin.resolve_model_name(registry, name), reason))
