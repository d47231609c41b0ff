"""Description of a published dataset: its repository, its splits, and how its rows become preferences."""

from dataclasses import dataclass

from dpo_core.data.row_outcome import Convert


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the hub, or in a directory laid out like it.

    convert: from a row and its name to a Preference or Dropped.
    schemas: sets of columns; rows that have all columns of one set are converted with ``convert``.
    splits: (train, test) by name, the first pair that the repository has; with no test split the first rows of the
        shuffled train split are held out.
    config: name of the hub dataset's configuration.
    also: other repositories with the same schema.
    files: patterns of the repository's files to download (empty: all).
    group_by: the column whose equal values form one preference; ``convert`` gets the other columns as lists.
    """

    hub_id: str
    convert: Convert
    schemas: tuple[tuple[str, ...], ...] = ()
    splits: tuple[tuple[str, str | None], ...] = (("train", None),)
    config: str | None = None
    also: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    group_by: str | None = None
