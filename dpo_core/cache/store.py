"""The cache under every stage: directories named by what produced them, whole if they exist."""

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from dpo_core.cache import atomic_files, fingerprint
from dpo_core.config.recipe import Recipe
from dpo_core.records import Record

R = TypeVar("R", bound=Record)

DRAFT, DISCARDED = "draft", "discarded"
RECORD, MANIFEST = "record.json", "manifest.json"


class Store:
    """``root/<stage>/<fingerprint>/``: a stage's files, ``record.json``, ``manifest.json`` (SHA-256 of all)."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    def entry(self, stage: str, key: str) -> Path:
        """Where the output of this stage and fingerprint is, or would be."""
        return self.root / stage / key

    def find(self, stage: str, key: str, kind: type[R]) -> R | None:
        """The record of an output that exists and is whole, or None. One that is damaged, or
        of another release, is put aside, to be built again."""
        entry = self.entry(stage, key)
        if not entry.exists():
            return None
        if damage(entry) is None:
            tidy(entry)
            with suppress(ValidationError):  # a record that another release wrote is not ours to read
                return kind.model_validate_json((entry / RECORD).read_text())
        discard(entry)
        return None

    def keys(self, stage: str) -> list[str]:
        """The fingerprints of a stage's outputs that have a record; whether they are whole, :meth:`find` says."""
        return sorted(record.parent.name for record in (self.root / stage).glob(f"[!.]*/{RECORD}"))

    @contextmanager
    def write(self, stage: str, key: str) -> Iterator["Draft"]:
        """A directory to fill aside; it appears under its name only if the block ends well and published a record.

        The block may leave it empty when :attr:`Draft.there` says that the output came to be meanwhile: one process at
        a time writes an entry, and the others wait for it.
        """
        entry = self.entry(stage, key)
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.locked(lock_of(entry)) as waited:
            sweep(entry)
            aside = entry.with_name(f".{key}.{DRAFT}-{uuid.uuid4().hex[:8]}")
            aside.mkdir()
            draft = Draft(aside, entry, there=waited and damage(entry) is None)
            try:
                yield draft
                if not draft.there:
                    draft.land()
            finally:
                shutil.rmtree(aside, ignore_errors=True)


class Draft:
    """An output that is being written. ``path`` is where to write now, ``final`` where the files will be.

    ``there``: another process has written it while this one waited.
    """

    def __init__(self, path: Path, final: Path, there: bool = False) -> None:
        self.path, self.final, self.there = path, final, there

    @property
    def store(self) -> Store:
        """The store that it is written to."""
        return Store(self.final.parents[1])

    def publish(self, record: Record, elsewhere: list[Path] | None = None) -> None:
        """Seal the draft with its record; ``elsewhere`` names files outside of it that belong to the output."""
        (self.path / RECORD).write_text(record.model_dump_json(indent=1))
        inside = [path for path in sorted(self.path.rglob("*")) if path.is_file()]
        files = {path.relative_to(self.path).as_posix(): fingerprint.of_file(path) for path in inside}
        files |= {str(path.resolve()): fingerprint.of_file(path) for path in elsewhere or []}
        (self.path / MANIFEST).write_text(json.dumps({"files": files}, indent=1))

    def land(self) -> None:
        """Move the sealed draft to its name, in place of one that is damaged."""
        if not (self.path / MANIFEST).exists():
            raise RuntimeError(f"the stage wrote {self.path} but published no record")
        for path in self.path.rglob("*"):
            atomic_files.sync(path)
        if self.final.exists():
            discard(self.final)
        atomic_files.rename(self.path, self.final)


def store_of(recipe: Recipe) -> Store:
    """The stage cache of a recipe's runs."""
    return Store(recipe.track.runs_dir / "store")


def lock_of(entry: Path) -> Path:
    """The file whose lock a writer of the entry holds."""
    return entry.with_name(f".{entry.name}.lock")


def sweep(entry: Path) -> None:
    """Remove what killed writers left, drafts and damaged outputs; the caller holds the lock."""
    for kind in (DRAFT, DISCARDED):
        for left in entry.parent.glob(f".{entry.name}.{kind}-*"):
            shutil.rmtree(left, ignore_errors=True)


def tidy(entry: Path) -> None:
    """Remove what a writer left that was killed when its output had just got its name."""
    if any(entry.parent.glob(f".{entry.name}.*")):
        with suppress(BlockingIOError), atomic_files.locked(lock_of(entry), wait=False):
            sweep(entry)


def damage(entry: Path) -> str | None:
    """What is wrong with an output (a missing or changed file, by name), or None when it is whole."""
    try:
        files = json.loads((entry / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return MANIFEST
    if RECORD not in files:
        return RECORD
    for name, digest in files.items():
        path = entry / name
        if not path.is_file() or fingerprint.of_file(path) != digest:
            return str(path)
    return None


def discard(entry: Path) -> None:
    """Take an output out of the way at once, then delete it."""
    doomed = entry.with_name(f".{entry.name}.{DISCARDED}-{uuid.uuid4().hex[:8]}")
    entry.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
