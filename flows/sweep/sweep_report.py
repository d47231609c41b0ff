"""Report of a sweep: a table of its members, a bar plot, and the description of its parent run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from flows.reports.curve_plot import BLUE, INK
from flows.reports.run_report import command_settings, format_value
from flows.sweep.member_processes import MemberResult
from flows.sweep.sweep_plan import SweepPlan

METRICS = {"prompt_strict_acc": "IFEval", "test/accuracy": "held-out accuracy"}
OPTIMISTIC = (
    "The best member's results are optimistic, because it was selected on the prompts and pairs that measured it;"
    " the more members, the more optimistic they are."
)


def final_metric(result: MemberResult, name: str) -> float | None:
    """A member's final metric, None if it was not measured."""
    return result.outcome.trained.metrics.get(name) if result.outcome else None


def measured_metrics(results: Sequence[MemberResult]) -> list[str]:
    """The metrics in METRICS that at least one member has."""
    return [name for name in METRICS if any(final_metric(result, name) is not None for result in results)]


def sweep_table(plan: SweepPlan, results: Sequence[MemberResult], best: MemberResult | None) -> Table:
    """A table with a row per member."""
    table = Table(title=f"Sweep {plan.fingerprint[:8]}", title_justify="left")
    names = measured_metrics(results)
    for column in (*plan.axes, "state", *(METRICS[name] for name in names), "version", ""):
        table.add_column(column, justify="right" if column not in ("state", "") else "left", overflow="fold")
    for result in results:
        table.add_row(*(Text(cell) for cell in member_cells(result, names)), Text("best" if result is best else ""))
    return table


def member_cells(result: MemberResult, names: Sequence[str]) -> list[str]:
    """A member's cells: values, state, the metrics ``names``, and version."""
    numbers = ["" if (value := final_metric(result, name)) is None else f"{value:.3f}" for name in names]
    version = str(result.outcome.version.version) if result.outcome else ""
    state = f"{result.state}: {result.reason}" if result.reason else result.state
    return [*result.member.values.values(), state, *numbers, version]


def to_markdown(plan: SweepPlan, results: Sequence[MemberResult], best: MemberResult | None) -> str:
    """The table in Markdown, for a Prefect artifact."""
    names = measured_metrics(results)
    heads = [*plan.axes, "state", *(METRICS[name] for name in names), "version", ""]
    rows = [[*member_cells(result, names), "**best**" if result is best else ""] for result in results]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join([*lines, "", OPTIMISTIC, ""])


def parent_description(plan: SweepPlan, results: Sequence[MemberResult], best: MemberResult, reason: str) -> str:
    """The parent run's description in Markdown, with lists and code only: MLflow renders no tables.

    The best member comes first, because the page folds long descriptions.
    """
    lines = []
    for result in sorted(results, key=lambda result: result is not best):
        numbers = [
            f"{METRICS[name]} {value:.3f}" for name in METRICS if (value := final_metric(result, name)) is not None
        ]
        name = f"**{result.member.name}** (best)" if result is best else result.member.name
        lines.append(f"- {name}: {', '.join(numbers) or f'{result.state}: {result.reason}'}")
    sentence = f"{reason[:1].upper()}{reason[1:]}"
    return "\n".join(
        [*lines, "", sentence, "", OPTIMISTIC, "", "To repeat this sweep:", "", f"    {sweep_command(plan)}"]
    )


def sweep_command(plan: SweepPlan) -> str:
    """The ``dpo sweep`` command that repeats a sweep."""
    defaults, settings = command_settings(type(plan.recipe)()), command_settings(plan.recipe)
    changed = [leaf for leaf in settings if settings[leaf] != defaults[leaf] and leaf not in plan.axes]
    fixed = [f"{leaf}={format_value(settings[leaf])}" for leaf in changed]
    varied = [f"{leaf}={value}" for leaf, values in plan.axes.items() for value in values]
    return shlex.join(["dpo", "sweep", *fixed, *varied])


def draw_bars(results: Sequence[MemberResult], path: Path) -> None:
    """Draw each metric of the finished members as bars, with the base as a dotted line, into the PNG ``path``.

    The line is left out where the members' bases differ.
    """
    done = [result for result in results if result.outcome]
    names = measured_metrics(done)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4 + 4 * len(names), 1.2 + 0.4 * len(done)), dpi=120, layout="constrained")
        axes = figure.subplots(1, max(len(names), 1), squeeze=False, sharey=True)[0]
        for axis, name in zip(axes, names, strict=False):
            values = [final_metric(result, name) or 0.0 for result in done]
            bars = axis.barh([result.member.name for result in done], values, color=BLUE)
            axis.bar_label(bars, fmt="{:.3f}", padding=3)
            bases = {result.outcome.base.metrics.get(name) for result in done if result.outcome}
            shared = bases.pop() if len(bases) == 1 else None
            if shared is not None:
                axis.axvline(shared, color=INK, linestyle=":", linewidth=1)
            note = "" if shared is None else " (dotted: base)"
            axis.set_title(f"{METRICS[name]}{note}", loc="left", fontweight="bold")
            axis.margins(x=0.15)
        axes[0].invert_yaxis()
        figure.savefig(path, metadata={"Software": None})
