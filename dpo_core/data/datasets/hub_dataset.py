"""What there is to know of a published dataset: where it is, how it is split, and what its rows mean."""

from dataclasses import dataclass

from dpo_core.data.row_outcome import Convert


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub, or laid out like one.

    convert: a row to a preference, or to the reason why it is none.
    schemas: sets of columns, by any of which a file of such rows is recognised.
    splits: (train, test) by name, the first pair that the repository has; with no test split the first rows of the
        shuffled train split are held out.
    config: the hub's name of the part that is meant.
    also: other repositories with such rows.
    files: patterns of the repository's files that are needed (none: all).
    group_by: the column whose equal values make one preference; ``convert`` gets the other columns as lists.
    """

    hub_id: str
    convert: Convert
    schemas: tuple[tuple[str, ...], ...] = ()
    splits: tuple[tuple[str, str | None], ...] = (("train", None),)
    config: str | None = None
    also: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    group_by: str | None = None
