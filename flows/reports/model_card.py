"""A version's description: what it was made of and how, what it measured, and what that does not say."""

from pathlib import Path

from dpo_core.config.recipe import Recipe
from dpo_core.evaluate.metric_names import other_task_metrics
from flows.registry.versions import Candidate
from flows.reports.run_report import command, results


def card(recipe: Recipe, candidate: Candidate) -> str:
    """The model card in Markdown, of which MLflow renders headings, lists and code but no tables."""
    parts = {
        "Base and data": made_of(recipe, candidate),
        "Limits": limits(recipe, candidate),
        "Recipe": [f"    {command(recipe)}"],
    }
    # The results first, without a heading: of a version's text the registry's list shows the first words.
    told = [f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items()]
    return "\n\n".join(["\n".join(results(candidate)), *told])


def made_of(recipe: Recipe, candidate: Candidate) -> list[str]:
    """The base, the pairs, and how one was trained on the other."""
    report = candidate.pairs.train_report
    dropped = ", ".join(f"{count:,} {cause}" for cause, count in report.dropped.items())
    train = recipe.train
    rank = recipe.model.lora_rank
    weights = f"LoRA of rank {rank}, merged" if rank else "all weights"
    return [
        f"- base: **{candidate.before.model_name}**, {weights}",
        f"- data: {candidate.rendered.train_pairs:,} pairs of {Path(candidate.pairs.dataset).name}"
        f" ({candidate.pairs.source}); left out: {dropped or 'none'}",
        f"- {candidate.checkpoint.step} steps of {train.batch_size} pairs, {train.loss}, beta {train.dpo_beta:g},"
        f" learning rate {train.learning_rate:g}, renderer {candidate.rendered.renderer_name}",
    ]


def limits(recipe: Recipe, candidate: Candidate) -> list[str]:
    """How much the results rest on, and what was not looked at."""
    metrics = candidate.after.metrics
    pairs = f"{metrics['test/num_pairs']:,.0f} held-out pairs of the same source"
    low, high = metrics["test/accuracy_low"], metrics["test/accuracy_high"]
    told = [f"- accuracy is of {pairs}, 95 % interval {low:.3f} to {high:.3f}"]
    if "prompt_strict_acc" in metrics:
        error = metrics.get("prompt_strict_stderr")
        told.append(f"- instructions followed are of one answer a prompt{f', ± {error:.3f} (1 σ)' if error else ''}")
    else:
        missing = "IFEval was not" if other_task_metrics(candidate.after) else "no task was"
        told.append(f"- {missing} asked: whether it follows instructions was not measured")
    if looping := metrics.get("loop_share"):
        told.append(f"- {looping:.1%} of its answers loop")
    return [
        *told,
        *exported(candidate),
        f"- trained on conversations of up to {recipe.render.max_length:,} tokens",
        "- not measured: truthfulness, safety, languages and tasks other than these",
    ]


def exported(candidate: Candidate) -> list[str]:
    """What writing the weights changed; nothing of a checkpoint of which it is not known."""
    export = candidate.checkpoint.export
    if not export:
        return []
    mean, low, high = (export[f"export/nats_a_reply{end}"] for end in ("", "_low", "_high"))
    return [
        f"- exporting changed held-out replies by {mean:.2g} nats (mean, 95 % interval {low:.2g} to {high:.2g}), and"
        f" margins by {candidate.checkpoint.margin_noise:.2g} (root mean square)"
    ]
