"""Which kinds of instructions the trained model follows, and which its base did, as one picture."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpo_core.records import EvalResult
from dpo_core.train.checkpoint import journal
from dpo_core.wilson import wilson
from flows.reports.curve_plot import BLUE, INK

OUTCOMES = "outcomes.jsonl"
TITLE = "instructions followed strictly, by kind (how many)"
HEIGHT = 0.38
WHISKERS = {"ecolor": "#999999", "elinewidth": 1}


class Followed(NamedTuple):
    """How many instructions of a kind were asked for, and the share of them that was followed strictly."""

    asked: int
    share: float

    @property
    def around(self) -> tuple[float, float]:
        """How far the share's 95 % interval reaches below and above it."""
        low, high = wilson(self.share, self.asked)
        # Not less than nothing, as rounding has it where the share is 0 or 1.
        return max(0.0, self.share - low), max(0.0, high - self.share)


def instructions(base: EvalResult, trained: EvalResult, path: Path) -> None:
    """Draw both models' shares of each kind, the largest gain first, into the PNG ``path``; nothing where none was
    asked for."""
    told = {"base": by_kind(base), "trained": by_kind(trained)}
    kinds = [kind for kind in told["trained"] if kind in told["base"]]
    if not kinds:
        return
    kinds.sort(key=lambda kind: (told["trained"][kind].share - told["base"][kind].share, kind))
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        picture(kinds, told).savefig(path, metadata={"Software": None})


def picture(kinds: list[str], told: dict[str, dict[str, Followed]]) -> Figure:
    """The bars, under a title and a legend that have the figure's whole width, however long the kinds' names are."""
    figure = Figure(figsize=(6.4, 1.2 + 0.42 * len(kinds)), dpi=110, layout="constrained")
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    axis = figure.subplots()
    draw(axis, kinds, told)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], frameon=False, ncols=2, loc="upper right", borderpad=0, borderaxespad=0.4
    )
    return figure


def by_kind(result: EvalResult) -> dict[str, Followed]:
    """Strict verdicts by kind of instruction; a prompt without a verdict counts nowhere."""
    marks: dict[str, list[bool]] = defaultdict(list)
    for line in journal.read(result.path / OUTCOMES):
        if line["error"] is None:
            for name, mark in zip(line["instruction_id_list"], line["strict"], strict=True):
                marks[name.rpartition(":")[2]].append(mark)
    return {kind: Followed(len(values), sum(values) / len(values)) for kind, values in marks.items()}


def draw(axis: Axes, kinds: list[str], told: dict[str, dict[str, Followed]]) -> None:
    """A pair of bars a kind, the base's above, with 95 % intervals and the numbers."""
    for place, (model, colour) in enumerate({"trained": BLUE, "base": INK}.items()):
        found = [told[model][kind] for kind in kinds]
        centres = [index + (place - 0.5) * HEIGHT for index in range(len(kinds))]
        shares, around = [one.share for one in found], [*zip(*(one.around for one in found), strict=True)]
        bars = axis.barh(centres, shares, HEIGHT, color=colour, label=model, xerr=around, error_kw=WHISKERS)
        axis.bar_label(bars, fmt="{:.2f}", padding=3, fontsize=7)
    axis.set_yticks(range(len(kinds)), [f"{kind} ({told['trained'][kind].asked})" for kind in kinds])
    axis.set_xlim(0, 1.12)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_ylim(-0.6, len(kinds) - 0.4)
    axis.set_xlabel("share followed, with its 95 % interval")
