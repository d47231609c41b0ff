"""A sweep as it is read: a table, bars, and a description."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from flows.reports.curve_plot import BLUE, INK
from flows.reports.run_report import plain, word
from flows.sweep.member_processes import Result
from flows.sweep.sweep_plan import SweepPlan

METRICS = {"prompt_strict_acc": "IFEval", "test/accuracy": "held-out accuracy"}
OPTIMISTIC = "The best of several on the same prompts and pairs looks better than it is: the more members, the more so."


def metric(result: Result, name: str) -> float | None:
    """A member's final number, if it has one."""
    return result.outcome.trained.metrics.get(name) if result.outcome else None


def known(results: Sequence[Result]) -> list[str]:
    """The metrics that any member has."""
    return [name for name in METRICS if any(metric(one, name) is not None for one in results)]


def table(plan: SweepPlan, results: Sequence[Result], best: Result | None) -> Table:
    """A member a line."""
    made = Table(title=f"Sweep {plan.fingerprint[:8]}", title_justify="left")
    names = known(results)
    for column in (*plan.axes, "state", *(METRICS[name] for name in names), "version", ""):
        made.add_column(column, justify="right" if column not in ("state", "") else "left", overflow="fold")
    for one in results:
        made.add_row(*(Text(cell) for cell in row(one, names)), Text("best" if one is best else ""))
    return made


def row(one: Result, names: Sequence[str]) -> list[str]:
    """A member's cells."""
    numbers = ["" if (value := metric(one, name)) is None else f"{value:.3f}" for name in names]
    version = str(one.outcome.version.version) if one.outcome else ""
    state = f"{one.state}: {one.told}" if one.told else one.state
    return [*one.member.values.values(), state, *numbers, version]


def markdown(plan: SweepPlan, results: Sequence[Result], best: Result | None) -> str:
    """The table for a Prefect artifact."""
    names = known(results)
    heads = [*plan.axes, "state", *(METRICS[name] for name in names), "version", ""]
    rows = [[*row(one, names), "**best**" if one is best else ""] for one in results]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join([*lines, "", OPTIMISTIC, ""])


def description(plan: SweepPlan, results: Sequence[Result], best: Result, reason: str) -> str:
    """The parent run's text, of which MLflow renders lists and code but no tables; the best member first, as the page
    folds the rest away."""
    lines = []
    for one in sorted(results, key=lambda one: one is not best):
        numbers = [f"{METRICS[name]} {value:.3f}" for name in METRICS if (value := metric(one, name)) is not None]
        name = f"**{one.member.name}** (best)" if one is best else one.member.name
        lines.append(f"- {name}: {', '.join(numbers) or f'{one.state}: {one.told}'}")
    said = f"{reason[:1].upper()}{reason[1:]}"
    return "\n".join([*lines, "", said, "", OPTIMISTIC, "", "Repeat it with", "", f"    {command(plan)}"])


def command(plan: SweepPlan) -> str:
    """The command line of a sweep."""
    default, told = plain(type(plan.recipe)()), plain(plan.recipe)
    fixed = [f"{leaf}={word(told[leaf])}" for leaf in told if told[leaf] != default[leaf] and leaf not in plan.axes]
    varied = [f"{leaf}={value}" for leaf, values in plan.axes.items() for value in values]
    return shlex.join(["dpo", "sweep", *fixed, *varied])


def bars(results: Sequence[Result], path: Path) -> None:
    """Each metric of the finished members as bars, their common base as a line, into the PNG ``path``."""
    done = [one for one in results if one.outcome]
    names = known(done)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4 + 4 * len(names), 1.2 + 0.4 * len(done)), dpi=120, layout="constrained")
        axes = figure.subplots(1, max(len(names), 1), squeeze=False, sharey=True)[0]
        for axis, name in zip(axes, names, strict=False):
            values = [metric(one, name) or 0.0 for one in done]
            told = axis.barh([one.member.name for one in done], values, color=BLUE)
            axis.bar_label(told, fmt="{:.3f}", padding=3)
            bases = {one.outcome.base.metrics.get(name) for one in done if one.outcome}
            shared = bases.pop() if len(bases) == 1 else None
            if shared is not None:
                axis.axvline(shared, color=INK, linestyle=":", linewidth=1)
            told_of = "" if shared is None else " (dotted: base)"
            axis.set_title(f"{METRICS[name]}{told_of}", loc="left", fontweight="bold")
            axis.margins(x=0.15)
        axes[0].invert_yaxis()
        figure.savefig(path, metadata={"Software": None})
