"""Plot of the share of instructions followed, by kind, for the base and the trained model."""

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
TITLE = "instructions followed strictly, by kind (count)"
HEIGHT = 0.38
WHISKERS = {"ecolor": "#999999", "elinewidth": 1}


class InstructionShare(NamedTuple):
    """Number of instructions of a kind, and the share of them that was followed strictly."""

    total: int
    share: float

    @property
    def error_bar(self) -> tuple[float, float]:
        """Distances from the share to the lower and the upper end of its 95 % Wilson interval."""
        low, high = wilson(self.share, self.total)
        # Rounding makes a distance slightly negative where the share is 0 or 1.
        return max(0.0, self.share - low), max(0.0, high - self.share)


def draw_instructions(base: EvalResult, trained: EvalResult, path: Path) -> None:
    """Draw both models' share of each kind, the largest gain on top, into the PNG ``path``.

    Nothing is drawn when the models have no kind in common.
    """
    shares = {"base": shares_by_kind(base), "trained": shares_by_kind(trained)}
    kinds = [kind for kind in shares["trained"] if kind in shares["base"]]
    if not kinds:
        return
    kinds.sort(key=lambda kind: (shares["trained"][kind].share - shares["base"][kind].share, kind))
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        instruction_figure(kinds, shares).savefig(path, metadata={"Software": None})


def instruction_figure(kinds: list[str], shares: dict[str, dict[str, InstructionShare]]) -> Figure:
    """Figure with the bars. Title and legend span its full width, so that long names of kinds cannot cover them."""
    figure = Figure(figsize=(6.4, 1.2 + 0.42 * len(kinds)), dpi=110, layout="constrained")
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    axis = figure.subplots()
    draw_bars(axis, kinds, shares)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], frameon=False, ncols=2, loc="upper right", borderpad=0, borderaxespad=0.4
    )
    return figure


def shares_by_kind(result: EvalResult) -> dict[str, InstructionShare]:
    """Share of instructions followed strictly, by kind; failed samples are left out."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for row in journal.read(result.path / OUTCOMES):
        if row["error"] is None:
            for name, followed in zip(row["instruction_id_list"], row["strict"], strict=True):
                verdicts[name.rpartition(":")[2]].append(followed)
    return {kind: InstructionShare(len(values), sum(values) / len(values)) for kind, values in verdicts.items()}


def draw_bars(axis: Axes, kinds: list[str], shares: dict[str, dict[str, InstructionShare]]) -> None:
    """Draw two bars per kind, the base's above the trained model's, with 95 % intervals and values."""
    for row, (model, color) in enumerate({"trained": BLUE, "base": INK}.items()):
        model_shares = [shares[model][kind] for kind in kinds]
        centers = [index + (row - 0.5) * HEIGHT for index in range(len(kinds))]
        widths = [kind_share.share for kind_share in model_shares]
        error_bars = [*zip(*(kind_share.error_bar for kind_share in model_shares), strict=True)]
        bars = axis.barh(centers, widths, HEIGHT, color=color, label=model, xerr=error_bars, error_kw=WHISKERS)
        axis.bar_label(bars, fmt="{:.2f}", padding=3, fontsize=7)
    axis.set_yticks(range(len(kinds)), [f"{kind} ({shares['trained'][kind].total})" for kind in kinds])
    axis.set_xlim(0, 1.12)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_ylim(-0.6, len(kinds) - 0.4)
    axis.set_xlabel("share followed, with 95 % interval")
