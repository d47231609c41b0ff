"""Final summary of a run on the terminal: base and trained model, paths of the outputs, next commands."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpo_core.evaluate.metric_names import other_task_metrics
from dpo_core.records import EvalResult
from flows.pipeline import PipelineOutcome
from flows.reports.run_report import format_metric

ROWS = (
    ("prompt_strict_acc", "prompts followed (strict)"),
    ("inst_strict_acc", "instructions followed (strict)"),
    ("prompt_loose_acc", "prompts followed (loose)"),
    ("test/accuracy", "held-out preference accuracy"),
    ("test/accuracy_beyond_noise", "  with export noise counted as ties"),
    ("test/margin", "held-out margin"),
    ("test/nll_chosen", "held-out NLL, chosen response"),
    ("test/nll_rejected", "held-out NLL, rejected response"),
    ("ended_share", "responses that end by themselves"),
    ("loop_share", "responses that loop"),
)
EXPORT = {
    "export/nats_a_reply": "change by the export, nats per response",
    "export/margin_noise": "change by the export, nats per margin",
}


def print_summary(outcome: PipelineOutcome) -> None:
    """Print the metrics, the decision, the paths of the outputs and the commands that use them."""
    console = Console(highlight=False)
    console.print(summary_table(outcome.base, outcome.trained, outcome.checkpoint.export))
    version = outcome.version
    lines = {
        "decision": outcome.promotion.reason,
        "model": f"{version.name}, version {version.version} ({version.model_uri})",
        "weights": str(outcome.checkpoint.path),
        "journal": str(outcome.checkpoint.log_path),
        "browse": "dpo ui",
        "chat": f"dpo chat {outcome.checkpoint.path}",
        "generate": f'dpo generate {outcome.checkpoint.path} "a prompt"',
    }
    if sentence := failed_samples(outcome):
        lines = {"failed": sentence, **lines}
    for name, line in lines.items():
        console.print(f"{name:>10}: {line}", markup=False, soft_wrap=True)


def failed_samples(outcome: PipelineOutcome) -> str:
    """A sentence on how many samples of the evaluations failed; empty when none did."""
    counts = {"base": outcome.base.failed, "trained": outcome.trained.failed}
    parts = [f"{count} of the {name} model's" for name, count in counts.items() if count]
    if not parts:
        return ""
    return f"{' and '.join(parts)} samples could not be generated or scored; no metric includes them"


def summary_table(base: EvalResult, trained: EvalResult, export: Mapping[str, float]) -> Table:
    """Metrics of the base and the trained model, with intervals where measured; then the change by the export."""
    metrics_table = Table(title="Base and trained", title_justify="left")
    for column in ("metric", "base", "trained"):
        metrics_table.add_column(column, justify="left" if column == "metric" else "right")
    for name, words in ROWS:
        if name in trained.metrics:
            metrics_table.add_row(words, format_cell(base.metrics, name), format_cell(trained.metrics, name))
    for name in other_task_metrics(trained):
        if name in base.metrics:
            metrics_table.add_row(escape(name), format_cell(base.metrics, name), format_cell(trained.metrics, name))
    for name, words in EXPORT.items():
        if name in export:
            metrics_table.add_row(words, "", format_cell(export, name))
    return metrics_table


def format_cell(metrics: Mapping[str, float], name: str) -> str:
    """A value with its 95 % interval or standard error, if either was measured; empty if the value was not."""
    if name not in metrics:
        return ""
    if f"{name}_low" in metrics:
        return f"{metrics[name]:.3f} [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]"
    return format_metric(metrics, name)
