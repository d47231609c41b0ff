"""Custom dataset ``package.module:Name``: a HubDataset, or a builder class in this or upstream's interface.

Ours: ``splits() -> (rows, rows | None)`` and ``convert(row, where) -> Preference | Dropped``; upstream's has
``get_train_and_test_datasets() -> (Dataset, Dataset | None)`` and ``example_to_labeled_comparison(row) ->
LabeledComparison | None``. Without test rows, pairs are held out by prompt.
"""

import importlib
import sys
import uuid
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpo_core.cache import fingerprint
from dpo_core.config.spelling import did_you_mean
from dpo_core.data.conversation import convert_comparison, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.preference import Preference
from dpo_core.data.row_outcome import Dropped, Outcome, Row, validate_pair
from dpo_core.errors import DataError, RecipeError
from dpo_core.system.progress import Progress

OWN_METHODS = ("splits", "convert")
UPSTREAM_METHODS = ("get_train_and_test_datasets", "example_to_labeled_comparison")
RULE = (
    f"A custom dataset is a HubDataset, or a class with the methods {' and '.join(OWN_METHODS)}, "
    f"or {' and '.join(UPSTREAM_METHODS)}."
)


def import_object(name: str) -> Any:
    """Import the object ``package.module:Name``; the working directory is searched too.

    Raises RecipeError when the module does not import or has no such name.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RecipeError(
            f"{module_name} of dataset={name} does not import: {reason}.", RULE, "Fix the module, or PYTHONPATH."
        ) from error
    if not hasattr(module, attribute):
        raise RecipeError(f"Module {module_name} has no {attribute}.", RULE, did_you_mean(attribute, vars(module)))
    return getattr(module, attribute)


def builder_identity(name: str) -> dict[str, str]:
    """What identifies a custom dataset, for the cache key: its module's file, and its ``fingerprint`` if it has one.

    A builder without a fingerprint may read unknown inputs, so its rows are read again in every run; later stages are
    cached by its pairs.
    """
    target = import_object(name)
    file = sys.modules[name.partition(":")[0]].__file__
    content = {"source": name, "code": fingerprint.of_file(Path(file)) if file else ""}
    if isinstance(target, HubDataset):
        return content
    builder = Builder.build(name, target)
    return content | {"fingerprint": str(getattr(builder.instance, "fingerprint", uuid.uuid4().hex))}


def find_hub_dataset(name: str) -> HubDataset | None:
    """The HubDataset of this name, its ``convert`` checked as a builder's is; None when the name is a builder's."""
    target = import_object(name)
    if not isinstance(target, HubDataset):
        return None
    builder = Builder(name, target, OWN_METHODS)

    def convert(row: Row, where: str) -> Outcome:
        return builder.outcome(builder.call("convert", row, where, where=where), where)

    return replace(target, convert=convert)


@dataclass(frozen=True)
class Builder:
    """An instantiated builder and the names of its two methods. ``name``: its name in the recipe."""

    name: str
    instance: Any
    methods: tuple[str, str]

    @classmethod
    def build(cls, name: str, kind: Any) -> "Builder":
        """Instantiate the builder.

        Raises RecipeError when it lacks a method, or cannot be called without arguments.
        """
        methods = UPSTREAM_METHODS if any(hasattr(kind, method) for method in UPSTREAM_METHODS) else OWN_METHODS
        for method in methods:
            if not callable(getattr(kind, method, None)):
                raise RecipeError(f"{name} has no method {method}.", RULE, f"Write {method}, or choose another class.")
        try:
            return cls(name, kind() if isinstance(kind, type) else kind, methods)
        except Exception as error:
            raise RecipeError(
                f"{name}() raises {type(error).__name__}: {error}.",
                "A builder is called without arguments.",
                "Give its arguments defaults.",
            ) from error

    def open(self) -> tuple[Iterator[Outcome], Iterator[Outcome] | None]:
        """The converted train rows, and the converted test rows or None.

        Raises DataError when the builder's method does not return a tuple of two.
        """
        splits = self.call(self.methods[0])
        if not isinstance(splits, tuple) or len(splits) != 2 or not isinstance(splits[0], Iterable):
            raise DataError(
                f"{self.name}.{self.methods[0]} returned {splits!r:.60}.",
                "It must return a tuple: the rows to train on, and the rows to test on or None.",
                "Return (train, None) to have the test split made.",
            )
        train, test = splits
        return self.outcomes(train, "train"), None if test is None else self.outcomes(test, "test")

    def outcomes(self, rows: Iterable[Row], split: str) -> Iterator[Outcome]:
        """Convert every row with the builder's second method."""
        progress = Progress(f"reading {self.name} {split}", len(rows) if isinstance(rows, Sized) else None, "rows")
        for number, row in enumerate(progress.track(rows)):
            where = f"{self.name} {split} row {number}"
            arguments = (row, where) if self.methods is OWN_METHODS else (row,)
            yield self.outcome(self.call(self.methods[1], *arguments, where=where), where)

    def call(self, method: str, *arguments: Any, where: str = "") -> Any:
        """Call a method of the builder.

        Raises DataError, with the row if there is one, for anything that it raises.
        """
        try:
            return getattr(self.instance, method)(*arguments)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.name}.{method} raises {type(error).__name__}{f' for {where}' if where else ''}: {error}.",
                "For a row that is not a preference, it returns None or Dropped.",
                "Fix the method; --debug shows where.",
            ) from error

    def outcome(self, result: Any, where: str) -> Outcome:
        """The builder's result for a row, validated.

        Raises DataError when it is not of one of the interface's types.
        """
        if result is None:
            return Dropped("left out by the builder", where)
        if isinstance(result, Dropped):
            return result
        if isinstance(result, Preference):
            return validate_pair(result, where)
        if hasattr(result, "comparison") and hasattr(result, "label"):
            names = ("prompt_conversation", "completion_A", "completion_B")
            parts = {name: getattr(result.comparison, name, None) for name in names}
            return tolerant(convert_comparison)({"comparison": parts, "label": result.label}, where)
        raise DataError(
            f"{self.name}.{self.methods[1]} returned a {type(result).__name__} for {where}.",
            "It must return a LabeledComparison, a Preference, Dropped or None.",
            "Fix the method.",
        )
