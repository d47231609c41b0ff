"""Model card: the description of a registered version, with results, base, data, limits and recipe."""

from pathlib import Path

from dpo_core.config.recipe import Recipe
from dpo_core.evaluate.metric_names import other_task_metrics
from flows.registry.versions import Candidate
from flows.reports.run_report import result_lines, run_command


def model_card_markdown(recipe: Recipe, candidate: Candidate) -> str:
    """The model card in Markdown, with headings, lists and code only: MLflow renders no tables."""
    parts = {
        "Base and data": base_and_data(recipe, candidate),
        "Limits": limits(recipe, candidate),
        "Recipe": [f"    {run_command(recipe)}"],
    }
    # The results come first, without a heading, as the registry's list of versions shows the first words only.
    sections = [f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items()]
    return "\n\n".join(["\n".join(result_lines(candidate)), *sections])


def base_and_data(recipe: Recipe, candidate: Candidate) -> list[str]:
    """Lines on the base model, the preference pairs and the training."""
    report = candidate.pairs.train_report
    dropped = ", ".join(f"{count:,} {cause}" for cause, count in report.dropped.items())
    train = recipe.train
    rank = recipe.model.lora_rank
    weights = f"LoRA of rank {rank}, merged" if rank else "all weights"
    return [
        f"- base: **{candidate.before.model_name}**, {weights}",
        f"- data: {candidate.rendered.train_pairs:,} pairs of {Path(candidate.pairs.dataset).name}"
        f" ({candidate.pairs.source}); dropped: {dropped or 'none'}",
        f"- training: {candidate.checkpoint.step} steps of {train.batch_size} pairs, loss {train.loss},"
        f" beta {train.dpo_beta:g}, learning rate {train.learning_rate:g}, renderer {candidate.rendered.renderer_name}",
    ]


def limits(recipe: Recipe, candidate: Candidate) -> list[str]:
    """Lines on how certain the results are, and on what was not measured."""
    metrics = candidate.after.metrics
    num_pairs = f"{metrics['test/num_pairs']:,.0f}"
    low, high = metrics["test/accuracy_low"], metrics["test/accuracy_high"]
    lines = [
        f"- preference accuracy: measured on {num_pairs} held-out pairs of the same source,"
        f" 95 % interval {low:.3f} to {high:.3f}"
    ]
    if "prompt_strict_acc" in metrics:
        error = metrics.get("prompt_strict_stderr")
        spread = f", standard error {error:.3f}" if error else ""
        lines.append(f"- prompts followed: measured on one response per prompt{spread}")
    else:
        missing = "IFEval was not run" if other_task_metrics(candidate.after) else "no task was run"
        lines.append(f"- {missing}, so instruction following was not measured")
    if looping := metrics.get("loop_share"):
        lines.append(f"- {looping:.1%} of the responses loop")
    return [
        *lines,
        *export_limits(candidate),
        f"- training conversations have at most {recipe.render.max_length:,} tokens",
        "- not measured: truthfulness, safety, other languages and other tasks",
    ]


def export_limits(candidate: Candidate) -> list[str]:
    """A line on how exporting the weights changed the log-probabilities; empty when that was not measured."""
    export = candidate.checkpoint.export
    if not export:
        return []
    mean, low, high = (export[f"export/nats_a_reply{end}"] for end in ("", "_low", "_high"))
    return [
        f"- exporting the weights changed the log-probability of a held-out response by {mean:.2g} nats (mean, 95 %"
        f" interval {low:.2g} to {high:.2g}) and margins by {candidate.checkpoint.margin_noise:.2g} (root mean square)"
    ]
