"""Dataset source of a recipe: its kind, its pinned location, the identity of its content, and its settings."""

import re
from pathlib import Path
from typing import Literal

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import DataSettings
from dpo_core.config.spelling import did_you_mean
from dpo_core.data.datasets import custom
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.datasets.registry import DATASETS, DEMO, HUB, OTHER_FORMS, convert_by_columns, dataset_of_repository
from dpo_core.data.readers import jsonl, tables
from dpo_core.data.readers.hub import HubRepository, resolve_commit
from dpo_core.errors import DataError, RecipeError

Kind = Literal["demo", "named", "hub", "custom", "file", "directory"]

LOCAL_ALTERNATIVE = "data_path=<local copy> or dataset=<local file>"
CUSTOM_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
COLUMN_SETTINGS = {"prompt_column", "chosen_column", "rejected_column"}
SPLIT_SETTINGS = {"dataset_config", "train_split", "test_split"}
SETTINGS_READ: dict[Kind, set[str]] = {
    "demo": set(),
    "named": {"data_path", "dataset_revision"},
    "hub": {"dataset_revision", "test_path", *COLUMN_SETTINGS, *SPLIT_SETTINGS},
    "custom": {"data_path", "dataset_revision"},
    "file": {"test_path", *COLUMN_SETTINGS},
    "directory": {"test_path", *COLUMN_SETTINGS, *SPLIT_SETTINGS},
}
"""The settings that each kind of dataset reads; any other setting is an error."""


def dataset_kind(data: DataSettings) -> Kind:
    """The kind of the recipe's ``dataset``.

    Raises DataError with the nearest name when there is no such dataset.
    """
    name, path = data.dataset, Path(data.dataset).expanduser()
    if name == DEMO:
        return "demo"
    if name in DATASETS:
        return "named"
    if name.startswith(HUB):
        return "hub" if dataset_of_repository(name.removeprefix(HUB)).convert is convert_by_columns else "named"
    if path.exists():
        return "directory" if path.is_dir() else "file"
    if CUSTOM_NAME.fullmatch(name):
        return "custom"
    suggestion = did_you_mean(name, [DEMO, *DATASETS, *(file.name for file in path.parent.glob("*"))])
    raise DataError(f"There is no dataset {name}.", f"A dataset is {', '.join(DATASETS)}, {OTHER_FORMS}.", suggestion)


def check_settings(data: DataSettings, kind: Kind) -> None:
    """Raises RecipeError for a setting that this kind of dataset does not read, and for settings that conflict."""
    for setting in sorted(set().union(*SETTINGS_READ.values()) - SETTINGS_READ[kind]):
        if getattr(data, setting) != DataSettings.model_fields[setting].default:
            kinds = ", ".join(name for name, settings in SETTINGS_READ.items() if setting in settings)
            raise RecipeError(
                f"{setting} has no effect on dataset={data.dataset} ({kind}).",
                f"Only these kinds of datasets read {setting}: {kinds}.",
                f"Leave out {setting}.",
            )
    if data.test_path and data.test_split:
        raise RecipeError(
            f"test_path={data.test_path} and test_split={data.test_split} both hold out pairs.",
            "Only one of them can be set.",
            "Leave out one of them.",
        )
    if data.data_path and data.dataset_revision:
        raise RecipeError(
            f"data_path={data.data_path} is local, and dataset_revision={data.dataset_revision} is set.",
            "A local data_path has no revisions.",
            "Leave out dataset_revision or data_path.",
        )


def pin_source(data: DataSettings) -> str:
    """The exact source of the dataset: demo, an absolute path, ``hub id@commit``, or ``package.module:Class``.

    Raises DataError when it cannot be found, RecipeError for a setting that it does not read.
    """
    kind = dataset_kind(data)
    check_settings(data, kind)
    if data.test_path:
        resolve_path(data.test_path)
    if kind == "demo":
        return DEMO
    if kind in ("file", "directory"):
        return resolve_path(Path(data.dataset))
    dataset = find_description(data, kind)
    if dataset is None:
        return data.dataset
    if data.data_path:
        return resolve_path(data.data_path)
    repository = HubRepository("dataset", dataset.hub_id, data.dataset_revision, LOCAL_ALTERNATIVE)
    return f"{dataset.hub_id}@{resolve_commit(repository)}"


def resolve_path(path: Path) -> str:
    """The path, made absolute.

    Raises DataError when it does not exist, or is a file of an unknown kind.
    """
    resolved = path.expanduser().resolve()
    if not resolved.exists():
        raise DataError(f"There is no {path}.", "A dataset path is an existing file or directory.", "Check the path.")
    if resolved.is_file() and resolved.suffix not in tables.BUILDERS and not resolved.name.endswith(jsonl.SUFFIXES):
        raise DataError(
            f"{path} is not a dataset file of a known kind.",
            f"Dataset files end in {', '.join([*jsonl.SUFFIXES, *tables.BUILDERS])}.",
            "Convert the file, or choose another.",
        )
    return str(resolved)


def find_description(data: DataSettings, kind: Kind) -> HubDataset | None:
    """The HubDataset that describes the dataset; None for a builder class."""
    if kind in ("named", "hub"):
        return DATASETS.get(data.dataset) or dataset_of_repository(data.dataset.removeprefix(HUB))
    return custom.find_hub_dataset(data.dataset)


def source_identity(source: str, data: DataSettings) -> dict[str, object]:
    """What identifies the rows, for the cache key: the source's digest, the rules that read it, a custom builder."""
    kind = dataset_kind(data)
    identity: dict[str, object] = {
        "source": source_digest(source),
        "rules": data.dataset if kind in ("named", "custom") else kind,
    }
    if kind == "custom":
        identity |= {"builder": custom.builder_identity(data.dataset)}
    return identity | ({"test": source_digest(resolve_path(data.test_path))} if data.test_path else {})


def source_digest(source: str) -> str:
    """Digest of a source's file, or of its directory's visible files; a pinned name is its own digest."""
    path = Path(source)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not is_hidden(file, path)]
        return fingerprint.of_files(files, path)
    return fingerprint.of_file(path) if path.is_file() else source


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file belongs to another program (caches, version control, locks): a part begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
