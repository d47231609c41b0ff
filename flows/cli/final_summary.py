"""The end of a run on the terminal: base against trained, where everything lies, and what to do next."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpo_core.evaluate.metric_names import other_task_metrics
from dpo_core.records import EvalResult
from flows.pipeline import PipelineOutcome
from flows.reports.run_report import measure

ROWS = (
    ("prompt_strict_acc", "prompts followed (strict)"),
    ("inst_strict_acc", "instructions followed (strict)"),
    ("prompt_loose_acc", "prompts followed (loose)"),
    ("test/accuracy", "held-out preference accuracy"),
    ("test/accuracy_beyond_noise", "  beyond the export noise"),
    ("test/margin", "held-out margin"),
    ("test/nll_chosen", "held-out NLL, chosen side"),
    ("test/nll_rejected", "held-out NLL, rejected side"),
    ("ended_share", "answers that end by themselves"),
    ("loop_share", "answers that loop"),
)
EXPORT = {
    "export/nats_a_reply": "changed by the export, nats a reply",
    "export/margin_noise": "changed by the export, nats a margin",
}


def show(outcome: PipelineOutcome) -> None:
    """Print the result."""
    console = Console(highlight=False)
    console.print(table(outcome.base, outcome.trained, outcome.checkpoint.export))
    version = outcome.version
    lines = {
        "decision": outcome.promotion.reason,
        "model": f"{version.name}, version {version.version} ({version.model_uri})",
        "weights": str(outcome.checkpoint.path),
        "journal": str(outcome.checkpoint.log_path),
        "look at it": "dpo ui",
        "try it": f"dpo chat {outcome.checkpoint.path}",
        "or": f'dpo generate {outcome.checkpoint.path} "a prompt"',
    }
    if told := failures(outcome):
        lines = {"failed": told, **lines}
    for name, line in lines.items():
        console.print(f"{name:>10}: {line}", markup=False, soft_wrap=True)


def failures(outcome: PipelineOutcome) -> str:
    """How many samples of the evaluations failed; empty when none did."""
    counts = {"base": outcome.base.failed, "trained": outcome.trained.failed}
    told = [f"{count} of the {name} model's" for name, count in counts.items() if count]
    return f"{' and '.join(told)} samples could not be asked or judged, and count nowhere" if told else ""


def table(base: EvalResult, trained: EvalResult, export: Mapping[str, float]) -> Table:
    """Base against trained, metric by metric, with the intervals that are known; then what exporting changed."""
    made = Table(title="Base and trained", title_justify="left")
    for column in ("metric", "base", "trained"):
        made.add_column(column, justify="left" if column == "metric" else "right")
    for name, words in ROWS:
        if name in trained.metrics:
            made.add_row(words, cell(base.metrics, name), cell(trained.metrics, name))
    for name in other_task_metrics(trained):
        if name in base.metrics:
            made.add_row(escape(name), cell(base.metrics, name), cell(trained.metrics, name))
    for name, words in EXPORT.items():
        if name in export:
            made.add_row(words, "", cell(export, name))
    return made


def cell(metrics: Mapping[str, float], name: str) -> str:
    """A value, with its standard error or its interval where there is one; nothing where it was not measured."""
    if name not in metrics:
        return ""
    if f"{name}_low" in metrics:
        return f"{metrics[name]:.3f} [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]"
    return measure(metrics, name)
