"""``package.module:Name``: a user's own dataset, as a HubDataset or as a builder class in our or upstream's interface.

Ours has ``splits() -> (rows, rows | None)`` and ``convert(row, where) -> Preference | Dropped``; upstream's has
``get_train_and_test_datasets() -> (Dataset, Dataset | None)`` and ``example_to_labeled_comparison(row) ->
LabeledComparison | None``. Without test rows the held-out pairs are taken by prompt.
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
from dpo_core.data.conversation import comparison, tolerant
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.preference import Preference
from dpo_core.data.row_outcome import Dropped, Outcome, Row, checked
from dpo_core.errors import DataError, RecipeError
from dpo_core.system.progress import Progress

OURS = ("splits", "convert")
UPSTREAM = ("get_train_and_test_datasets", "example_to_labeled_comparison")
RULE = f"A custom dataset is a HubDataset, or a class with {' and '.join(OURS)}, or {' and '.join(UPSTREAM)}."


def find(name: str) -> Any:
    """The object that ``package.module:Name`` names, looked for in this directory too.

    Raises RecipeError when the module does not import or has no such name.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RecipeError(
            f"{module_name} of dataset={name} does not import: {told}.", RULE, "Mend the module, or PYTHONPATH."
        ) from error
    if not hasattr(module, attribute):
        raise RecipeError(f"Module {module_name} has no {attribute}.", RULE, did_you_mean(attribute, vars(module)))
    return getattr(module, attribute)


def identity(name: str) -> dict[str, str]:
    """What the pairs of a builder are known by: its module's file, and its ``fingerprint`` if it has one.

    A builder without one may read what we cannot see, and so is asked again each time; what follows is cached by its
    pairs.
    """
    found = find(name)
    file = sys.modules[name.partition(":")[0]].__file__
    told = {"source": name, "code": fingerprint.of_file(Path(file)) if file else ""}
    if isinstance(found, HubDataset):
        return told
    builder = Builder.build(name, found)
    return told | {"fingerprint": str(getattr(builder.made, "fingerprint", uuid.uuid4().hex))}


def described(name: str) -> HubDataset | None:
    """The HubDataset of this name, its conversions watched as a builder's are; None when the name is a builder's."""
    found = find(name)
    if not isinstance(found, HubDataset):
        return None
    builder = Builder(name, found, OURS)

    def convert(row: Row, where: str) -> Outcome:
        return builder.outcome(builder.call("convert", row, where, where=where), where)

    return replace(found, convert=convert)


@dataclass(frozen=True)
class Builder:
    """A builder that was made, and the names of its two methods. ``name`` is how the recipe calls it."""

    name: str
    made: Any
    methods: tuple[str, str]

    @classmethod
    def build(cls, name: str, kind: Any) -> "Builder":
        """Make the builder.

        Raises RecipeError when it lacks a method or wants arguments.
        """
        methods = UPSTREAM if any(hasattr(kind, method) for method in UPSTREAM) else OURS
        for method in methods:
            if not callable(getattr(kind, method, None)):
                raise RecipeError(f"{name} has no method {method}.", RULE, f"Write {method}, or choose another class.")
        try:
            return cls(name, kind() if isinstance(kind, type) else kind, methods)
        except Exception as error:
            raise RecipeError(
                f"{name}() raises {type(error).__name__}: {error}.",
                "A builder is made without arguments.",
                "Give its arguments defaults.",
            ) from error

    def open(self) -> tuple[Iterator[Outcome], Iterator[Outcome] | None]:
        """The outcomes of its train rows, and of its test rows if it has any.

        Raises DataError when the builder's method returns anything but two sets of rows.
        """
        told = self.call(self.methods[0])
        if not isinstance(told, tuple) or len(told) != 2 or not isinstance(told[0], Iterable):
            raise DataError(
                f"{self.name}.{self.methods[0]} returned {told!r:.60}.",
                "It returns two: the rows to train on, and the rows to test on or None.",
                "Return (train, None) to have the test split made.",
            )
        train, test = told
        return self.outcomes(train, "train"), None if test is None else self.outcomes(test, "test")

    def outcomes(self, rows: Iterable[Row], split: str) -> Iterator[Outcome]:
        """Every row through the builder's second method."""
        progress = Progress(f"reading {self.name} {split}", len(rows) if isinstance(rows, Sized) else None, "rows")
        for number, row in enumerate(progress.track(rows)):
            where = f"{self.name} {split} row {number}"
            words = (row, where) if self.methods is OURS else (row,)
            yield self.outcome(self.call(self.methods[1], *words, where=where), where)

    def call(self, method: str, *words: Any, where: str = "") -> Any:
        """Call a method of the builder; what it raises is told with the row."""
        try:
            return getattr(self.made, method)(*words)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.name}.{method} raises {type(error).__name__}{f' for {where}' if where else ''}: {error}.",
                "A row that is no preference is None, or Dropped.",
                "Mend the method; --debug shows where.",
            ) from error

    def outcome(self, told: Any, where: str) -> Outcome:
        """What the builder made of a row, checked as every row is.

        Raises DataError when it is of another type than the interface's.
        """
        if told is None:
            return Dropped("left out by the builder", where)
        if isinstance(told, Dropped):
            return told
        if isinstance(told, Preference):
            return checked(told, where)
        if hasattr(told, "comparison") and hasattr(told, "label"):
            names = ("prompt_conversation", "completion_A", "completion_B")
            parts = {name: getattr(told.comparison, name, None) for name in names}
            return tolerant(comparison)({"comparison": parts, "label": told.label}, where)
        raise DataError(
            f"{self.name}.{self.methods[1]} returned a {type(told).__name__} for {where}.",
            "It returns a LabeledComparison or None, or in our interface a Preference or Dropped.",
            "Mend the method.",
        )
