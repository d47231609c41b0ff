"""Where the recipe's dataset is, what its content is known by, and which settings say something about it."""

import re
from pathlib import Path
from typing import Literal

from dpo_core.cache import fingerprint
from dpo_core.config.recipe import DataSettings
from dpo_core.config.spelling import did_you_mean
from dpo_core.data.datasets import custom
from dpo_core.data.datasets.hub_dataset import HubDataset
from dpo_core.data.datasets.registry import BESIDES, DATASETS, DEMO, HUB, convert, of_hub
from dpo_core.data.readers import jsonl, tables
from dpo_core.data.readers.hub import HubRepository, check_reachable
from dpo_core.errors import DataError, RecipeError

Kind = Literal["demo", "named", "hub", "custom", "file", "directory"]

INSTEAD = "data_path=<local copy> or dataset=<local file>"
CUSTOM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
COLUMNS = {"prompt_column", "chosen_column", "rejected_column"}
SPLITS = {"dataset_config", "train_split", "test_split"}
READ: dict[Kind, set[str]] = {
    "demo": set(),
    "named": {"data_path", "dataset_revision"},
    "hub": {"dataset_revision", "test_path", *COLUMNS, *SPLITS},
    "custom": {"data_path", "dataset_revision"},
    "file": {"test_path", *COLUMNS},
    "directory": {"test_path", *COLUMNS, *SPLITS},
}
"""Which settings mean something for which kind of dataset; the others are errors there."""


def kind_of(data: DataSettings) -> Kind:
    """What the recipe's ``dataset`` is.

    Raises DataError with the nearest name when it is nothing.
    """
    name, path = data.dataset, Path(data.dataset).expanduser()
    if name == DEMO:
        return "demo"
    if name in DATASETS:
        return "named"
    if name.startswith(HUB):
        return "hub" if of_hub(name.removeprefix(HUB)).convert is convert else "named"
    if path.exists():
        return "directory" if path.is_dir() else "file"
    if CUSTOM.fullmatch(name):
        return "custom"
    near = did_you_mean(name, [DEMO, *DATASETS, *(found.name for found in path.parent.glob("*"))])
    raise DataError(f"There is no dataset {name}.", f"A dataset is {', '.join(DATASETS)}, {BESIDES}.", near)


def check_settings(data: DataSettings, kind: Kind) -> None:
    """Raises RecipeError for a setting that nothing would read."""
    for leaf in sorted(set().union(*READ.values()) - READ[kind]):
        if getattr(data, leaf) != DataSettings.model_fields[leaf].default:
            kinds = ", ".join(name for name, read in READ.items() if leaf in read)
            raise RecipeError(
                f"{leaf} says nothing about dataset={data.dataset} ({kind}).",
                f"{leaf} goes with these kinds of datasets: {kinds}.",
                f"Leave out {leaf}.",
            )
    if data.test_path and data.test_split:
        raise RecipeError("test_path and test_split both hold out pairs.", "One of them can.", "Leave out one of them.")
    if data.data_path and data.dataset_revision:
        raise RecipeError("A local data_path has no revisions.", "", "Leave out dataset_revision or data_path.")


def pin(data: DataSettings) -> str:
    """Where the dataset is, so exactly that its content is meant: demo, a path, a hub id and commit, or a class.

    Raises DataError when it cannot be found, RecipeError when a setting says nothing about it.
    """
    kind = kind_of(data)
    check_settings(data, kind)
    if data.test_path:
        located(data.test_path)
    if kind == "demo":
        return DEMO
    if kind in ("file", "directory"):
        return located(Path(data.dataset))
    dataset = known(data, kind)
    if dataset is None:
        return data.dataset
    if data.data_path:
        return located(data.data_path)
    return (
        f"{dataset.hub_id}@{check_reachable(HubRepository('dataset', dataset.hub_id, data.dataset_revision, INSTEAD))}"
    )


def located(path: Path) -> str:
    """The path, made absolute.

    Raises DataError when there is nothing, or a file of another kind.
    """
    place = path.expanduser().resolve()
    if not place.exists():
        raise DataError(f"There is no {path}.", "Preferences are read from files and directories.", "Check the path.")
    if place.is_file() and place.suffix not in tables.BUILDERS and not place.name.endswith(jsonl.SUFFIXES):
        raise DataError(
            f"{path} is of no known kind.", f"Files end in {', '.join([*jsonl.SUFFIXES, *tables.BUILDERS])}.", ""
        )
    return str(place)


def known(data: DataSettings, kind: Kind) -> HubDataset | None:
    """The description of the dataset, where there is one; None for a builder class."""
    if kind in ("named", "hub"):
        return DATASETS.get(data.dataset) or of_hub(data.dataset.removeprefix(HUB))
    return custom.described(data.dataset)


def content(source: str, data: DataSettings) -> dict[str, object]:
    """What the rows are known by: digests of files, pinned names, and which rules read them."""
    kind = kind_of(data)
    told: dict[str, object] = {"source": digest(source), "rules": data.dataset if kind in ("named", "custom") else kind}
    if kind == "custom":
        told |= {"builder": custom.identity(data.dataset)}
    return told | ({"test": digest(located(data.test_path))} if data.test_path else {})


def digest(source: str) -> str:
    """What a source's content is known by: the digest of a file or of a directory's files, or a pinned name."""
    path = Path(source)
    if path.is_dir():
        files = [found for found in sorted(path.rglob("*")) if found.is_file() and not hidden(found, path)]
        return fingerprint.of_files(files, path)
    return fingerprint.of_file(path) if path.is_file() else source


def hidden(path: Path, root: Path) -> bool:
    """Whether a file is another program's own business: caches, version control, locks."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
