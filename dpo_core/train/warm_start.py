"""Warm start: supervised fine-tuning (SFT) for a few steps on the data's completions, before DPO."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpo_core.cache.store import Draft
from dpo_core.config.recipe import WarmStartSettings
from dpo_core.errors import TrainingError
from dpo_core.model.load import check_vocabulary, load_model
from dpo_core.model.locate import describe
from dpo_core.model.save_model import save_model
from dpo_core.render.token_dataset import TokenDataset, open_split
from dpo_core.stages.warm_start import WarmStartRequest
from dpo_core.system.device import check_precision
from dpo_core.system.progress import Progress
from dpo_core.train import schedule
from dpo_core.train.batching import auto_token_budget, budget_attempt, budget_note
from dpo_core.train.batching.auto_token_budget import BudgetHistory, BudgetPlan
from dpo_core.train.batching.batch_layout import choose_layout
from dpo_core.train.batching.memory_estimate import Workload
from dpo_core.train.batching.packing import Branches, Layout, build, split_microbatches, trained_token_counts
from dpo_core.train.data_order import permutation
from dpo_core.train.logps import autocast, backward
from dpo_core.train.runtime.memory_watch import MemoryWatch, explain_memory, explain_microbatch_memory, interruptible

BETAS = (0.9, 0.95)
# Instead of the usual five: each takes about 11 ms of the demo's step on two cores.
MUON_ITERATIONS = 3
WARMUP_STEPS = 20
MAX_GRADIENT_NORM = 1.0
# Separates this phase's draws from those of other users of the same seed.
STREAM = 1
# What helps where memory ran out beside the microbatches.
REMEDY = "Make memory free, or choose a smaller model; finished stages are kept."


@dataclass(frozen=True)
class SupervisedPhase:
    """What a warm start works on: ``rows`` gives the completions, ``seed`` decides their order and sides."""

    model: nn.Module
    rows: TokenDataset
    settings: WarmStartSettings
    seed: int
    layout: Layout = "tree"
    token_budget: int = 16384
    precision: str = "fp32"
    from_scratch: bool = False


def fit_phase(phase: SupervisedPhase) -> Iterator[float]:
    """Minimise the mean negative log-likelihood per trained token; yields each step's, in nats, before the step.

    The learning rate rises over the first steps and then falls linearly to zero; the gradient's norm is clipped.
    Raises TrainingError, with the step not applied, when the loss or the gradient is not finite.
    """
    parameters = [parameter for parameter in phase.model.parameters() if parameter.requires_grad]
    working = optimizers(phase)
    for step, batch in enumerate(batches(phase)):
        loss = accumulate(phase, batch)
        norm = float(nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM))
        check_finite(loss, norm, step)
        for optimizer in working:
            set_learning_rate(optimizer, step, phase.settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss


def optimizers(phase: SupervisedPhase) -> list[torch.optim.Optimizer]:
    """AdamW; for a model from nothing, Muon on its hidden matrices and AdamW on the rest.

    Muon (Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024) learns from fewer tokens there; its
    updates are scaled to AdamW's size, so that one learning rate serves both (arXiv 2502.16982, section 2.2).
    """
    named = {name: value for name, value in phase.model.named_parameters() if value.requires_grad}
    hidden = [value for name, value in named.items() if phase.from_scratch and ".layers." in name and value.ndim == 2]
    taken = {id(value) for value in hidden}
    rest = [value for value in named.values() if id(value) not in taken]
    adamw = torch.optim.AdamW(rest, betas=BETAS, weight_decay=0.0, fused=True)
    if not hidden:
        return [adamw]
    muon = torch.optim.Muon(hidden, weight_decay=0.0, ns_steps=MUON_ITERATIONS, adjust_lr_fn="match_rms_adamw")
    return [adamw, muon]


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, settings: WarmStartSettings) -> None:
    """The rate of the 0-based ``step``."""
    factor = schedule.warmup_factor(step, WARMUP_STEPS) * schedule.learning_rate_factor(
        "linear", step, settings.sft_steps
    )
    for group in optimizer.param_groups:
        group["lr"] = settings.sft_learning_rate * factor


def accumulate(phase: SupervisedPhase, batch: list[Branches]) -> float:
    """Gradients of the batch's mean loss per trained token, whatever its split into microbatches; returns that mean."""
    device = next(phase.model.parameters()).device
    trained = sum(trained_token_counts(batch))
    total = torch.zeros((), device=device)

    def objective(logps: Tensor, _: slice) -> Tensor:
        loss = -logps.sum() / trained
        total.add_(loss.detach())
        return loss

    longest = max(item.tokens for item in batch)
    with explain_microbatch_memory(phase.token_budget, longest), interruptible(), autocast(device, phase.precision):
        for group in split_microbatches(phase.layout, batch, phase.token_budget):
            backward(
                phase.model, build(phase.layout, [batch[index] for index in group], device), objective, group_size=1
            )
    return float(total)


def check_finite(loss: float, norm: float, step: int) -> None:
    """Raises TrainingError when the step must not be applied."""
    if not np.isfinite([loss, norm]).all():
        raise TrainingError(
            f"The warm start's loss is {loss} and its gradient {norm} at step {step + 1}.",
            "A step with a loss or gradient that is not finite is not applied.",
            "Lower sft_learning_rate, or use precision=fp32.",
        )


def batches(phase: SupervisedPhase) -> Iterator[list[Branches]]:
    """``sft_steps`` lists of ``sft_batch_size`` completions after their prompts, as rows, settings and seed decide."""
    size = phase.settings.sft_batch_size
    drawn = draw_pairs(len(phase.rows), phase.settings, phase.seed)
    sides = np.random.default_rng([phase.seed, STREAM]).random(len(drawn)) < phase.settings.sft_chosen_fraction
    for start in range(0, len(drawn), size):
        indices = range(start, start + size)
        yield [completion_example(phase.rows, int(drawn[index]), bool(sides[index])) for index in indices]


def draw_pairs(pairs: int, settings: WarmStartSettings, seed: int) -> NDArray[np.int64]:
    """Which pair each completion of the phase comes from: every pair once an epoch, (steps × batch,) int64."""
    setting = settings.sft_steps * settings.sft_batch_size
    epochs = [permutation(seed, epoch, pairs) for epoch in range(-(-setting // pairs))]
    return np.concatenate(epochs)[:setting]


def completion_example(rows: TokenDataset, index: int, chosen: bool) -> Branches:
    """One side of a pair after its prompt."""
    pair = rows[index]
    return Branches(pair.prompt, (pair.sides.chosen if chosen else pair.sides.rejected,))


def run(request: WarmStartRequest, draft: Draft) -> None:
    """Fit the model to the training pairs' completions; publish it as a ModelSource.

    Raises OutOfMemoryError, or DiedError where the budget was found by memory, when memory runs out.
    """
    source, rendered, train = request.model, request.rendered, request.train
    check_precision(train.precision)
    model = load_model(source.path, train.seed, source.trust_remote_code)
    rows = open_split(rendered.path, "train")
    check_vocabulary(model, rows.largest_id())
    work = Workload(model, rows, choose_layout(model, train.layout, rendered), train.precision, sides=1)
    note = budget_note.note_beside(draft.final)
    plan = plan_token_budget(request, work, note)
    phase = SupervisedPhase(
        model,
        rows,
        request.warm_start,
        train.seed,
        layout=work.layout,
        token_budget=plan.tokens,
        precision=train.precision,
        from_scratch=not source.has_weights,
    )
    with (
        budget_attempt.attempt_budget(note if plan.auto else None, plan.tokens) as trying,
        MemoryWatch(work.device.type == "cpu"),
    ):
        report_phase(phase, trying)
    save_model(model, rendered.tokenizer_path, rendered.renderer_name, draft.path / "model")
    draft.publish(describe(draft.path / "model", f"{source.name} (warm)", draft.final / "model"))


def plan_token_budget(request: WarmStartRequest, work: Workload, note: Path) -> BudgetPlan:
    """The phase's token budget, said in a line."""
    size, setting = request.warm_start.sft_batch_size, request.train.token_budget
    drawn = draw_pairs(len(work.rows), request.warm_start, request.train.seed)
    batches = [drawn[start : start + size].tolist() for start in range(0, len(drawn), size)]
    past = BudgetHistory(failed=budget_attempt.failed_budget(note)) if setting == "auto" else BudgetHistory()
    plan = auto_token_budget.plan(work, setting, past, batches[: auto_token_budget.PLANNED_STEPS])
    for line in (*plan.lines, f"warm start: {work.layout} layout, {plan}"):
        print(line, flush=True)
    return plan


def report_phase(phase: SupervisedPhase, trying: budget_attempt.BudgetAttempt) -> None:
    """Go through the phase, saying now and then how far it is.

    Raises OutOfMemoryError when memory runs out.
    """
    progress = Progress("warm start", phase.settings.sft_steps, "steps")
    with explain_memory("the warm start", "Weights, gradients and the optimizer's state must fit.", REMEDY):
        for done, loss in enumerate(fit_phase(phase), 1):
            if done == 1:
                trying.write(proven=True)
            progress.advance(note=f"{loss:.3f} nats a token")
