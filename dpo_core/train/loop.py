"""The training loop: a generator of steps that knows no logger, no tracker and no callback."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import TrainingError
from dpo_core.pair import Pair
from dpo_core.records import StepMetrics
from dpo_core.render.token_dataset import TokenDataset, TokenPair
from dpo_core.system.malloc_tuning import trim_above
from dpo_core.train import data_order, schedule
from dpo_core.train.batching.packing import Batch, Layout, branches, build, split_microbatches, sum_by_side, to_device
from dpo_core.train.logps import autocast, backward
from dpo_core.train.loss import LossSettings, PairLogps, kl_estimate, pair_losses, rewards, wins
from dpo_core.train.reference import Reference
from dpo_core.train.runtime.flops import ModelSizes, StepFlops, peak_memory
from dpo_core.train.runtime.memory_watch import explain_microbatch_memory, interruptible

SUMS = ("dpo_loss", "accuracy", "chosen_reward", "rejected_reward", "kl")


@dataclass(frozen=True)
class Run:
    """What a training run works on. ``peak_flops`` (FLOP/s of a matmul here) is what MFU is told against, if known.
    ``heap_limit``: bytes of a CPU process above which free memory is given back after a microbatch (None: never)."""

    policy: nn.Module
    optimizer: torch.optim.Optimizer
    rows: TokenDataset
    references: Reference
    settings: TrainSettings
    layout: Layout = "tree"
    token_budget: int = 16384
    peak_flops: float | None = None
    heap_limit: int | None = None

    @property
    def total(self) -> int:
        """Optimizer steps from beginning to end."""
        return data_order.total_steps(len(self.rows), self.settings)

    @property
    def losses(self) -> LossSettings:
        """The settings of the loss."""
        return loss_settings(self.settings)


def loss_settings(train: TrainSettings) -> LossSettings:
    """What of the recipe the losses read."""
    return LossSettings(train.loss, train.dpo_beta, train.label_smoothing, train.simpo_gamma, train.rpo_alpha)


def steps(run: Run, done: int = 0) -> Iterator[StepMetrics]:
    """Train from ``done`` finished steps to the end, yielding after each step.

    Raises TrainingError, with the step not applied, when loss or gradient are not finite, and OutOfMemoryError,
    with the step not applied, when memory runs out in its microbatches. Beyond them torch's own errors pass: then the
    weights may be those of the step, or of none.
    """
    shape = ModelSizes.of(run.policy)
    upcoming = load_batch(run, done)
    for step in range(done, run.total):
        started = time.perf_counter()
        learning_rate = set_learning_rate(run, step)
        batch, pairs = upcoming
        sums, micros = accumulate_within_memory(run, batch, pairs)
        outcome = torch.cat([sums, gradient_norm(run.policy)[None].to(sums)])
        asked = time.perf_counter()
        upcoming = load_batch(run, step + 1)  # while a GPU is still at work
        loaded = time.perf_counter()
        told = outcome.tolist()  # the step's one copy to the host
        values = step_values(told, pairs)
        check_finite(values, step, batch)
        computed = time.perf_counter()
        clip_gradients(run, values["grad_norm"])
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        ended = time.perf_counter()
        values |= progress_values(run, step, learning_rate) | speed_values(
            run, shape.cost(pairs, micros), ended - started
        )
        values |= {
            "time/data": loaded - asked,
            "time/forward_backward": computed - started - (loaded - asked),
            "time/optimizer": ended - computed,
        }
        yield StepMetrics(step=step + 1, time=time.time(), values=values)


def load_batch(run: Run, step: int) -> tuple[list[int], list[TokenPair]]:
    """The indices and the pairs of a step; none of one behind the last."""
    batch = data_order.batch_indices(step, len(run.rows), run.settings) if step < run.total else []
    return batch, [run.rows[index] for index in batch]


def accumulate_within_memory(run: Run, batch: list[int], pairs: list[TokenPair]) -> tuple[Tensor, list[Batch]]:
    """:func:`accumulate`, with an error that says what to lower when memory runs out."""
    longest = max(branches(pair).tokens for pair in pairs)
    more = "" if run.settings.activation_checkpointing else ", or set activation_checkpointing=true"
    with explain_microbatch_memory(run.token_budget, longest, more), interruptible():
        return accumulate(run, batch, pairs)


def accumulate(run: Run, batch: Sequence[int], pairs: Sequence[TokenPair]) -> tuple[Tensor, list[Batch]]:
    """Gradients of the mean loss over the batch, whatever its split; returns the SUMS (float64) and the microbatches.

    batch: the pairs' indices in the training split.
    """
    device = next(run.policy.parameters()).device
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    items, micros = [branches(pair) for pair in pairs], []
    with autocast(device, run.settings.precision):
        for group in split_microbatches(run.layout, items, run.token_budget):
            micro = build(run.layout, [items[place] for place in group], device)
            known = run.references.of([batch[place] for place in group], micro)
            objective = MicrobatchObjective(run.losses, micro.counts, known, len(batch))
            backward(run.policy, micro, objective)
            sums += objective.sums
            micros.append(micro)
            if run.heap_limit:
                trim_above(run.heap_limit)
    return sums, micros


class MicrobatchObjective:
    """The loss of a microbatch's pairs as a share of the batch's mean, and on the way the sums that are reported.

    ``known``: the reference's log-probabilities (M,) of the microbatch's trained tokens. ``pairs``: of the whole batch.
    """

    def __init__(self, settings: LossSettings, counts: Sequence[int], known: Tensor, pairs: int) -> None:
        self.settings, self.counts, self.known, self.pairs = settings, counts, known, pairs
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=known.device)

    def __call__(self, logps: Tensor, where: slice) -> Tensor:
        """The share of the completions ``where``, a scalar."""
        start = sum(self.counts[: where.start])
        known = self.known[start : start + len(logps)]
        evidence = pair_logps(logps, known, self.counts[where])
        losses = pair_losses(evidence, self.settings)
        with torch.no_grad():
            self.sums += metric_sums(losses, evidence, self.settings.beta, kl_estimate(logps, known))
        return losses.sum() / self.pairs


def pair_logps(logps: Tensor, known: Tensor, counts: Sequence[int]) -> PairLogps:
    """Per-token log-probabilities of policy and reference, (M,) each, as the pairs' evidence."""
    lengths = to_device(torch.tensor(counts, dtype=logps.dtype), logps.device)
    return PairLogps(
        ratios=sum_by_side(logps - known, counts),
        logps=sum_by_side(logps, counts),
        lengths=Pair(lengths[::2], lengths[1::2]),
    )


def metric_sums(losses: Tensor, evidence: PairLogps, beta: float, kl: Tensor) -> Tensor:
    """The SUMS over some pairs, float64."""
    gained = rewards(evidence, beta)
    parts = (losses, wins(evidence.difference), gained.chosen, gained.rejected, kl)
    return torch.stack([part.double().sum() for part in parts])


def set_learning_rate(run: Run, step: int) -> float:
    """Put the schedule's learning rate into the optimizer."""
    train = run.settings
    rate = train.learning_rate * schedule.learning_rate_factor(train.lr_schedule, step, run.total)
    rate *= schedule.warmup_factor(step, train.warmup_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate


def gradient_norm(policy: nn.Module) -> Tensor:
    """The L2 norm of all gradients together, a scalar tensor."""
    return torch.nn.utils.get_total_norm([p.grad for p in policy.parameters() if p.grad is not None])


def clip_gradients(run: Run, norm: float) -> None:
    """Scale the gradients down to ``max_grad_norm`` where there is such a bound and they are beyond it."""
    bound = run.settings.max_grad_norm
    if bound is not None and norm > bound:
        torch._foreach_mul_([p.grad for p in run.policy.parameters() if p.grad is not None], bound / norm)


def step_values(told: list[float], pairs: Sequence[TokenPair]) -> dict[str, float]:
    """Means over all pairs of the step, and its counts (margins and rewards carry β once)."""
    *sums, grad_norm = told
    named = dict(zip(SUMS, sums, strict=True))
    means = {name: named[name] / len(pairs) for name in SUMS[:4]}
    return {
        **means,
        "margin": means["chosen_reward"] - means["rejected_reward"],
        "kl": named["kl"] / sum(pair.trained for pair in pairs),
        "grad_norm": grad_norm,
        "num_pairs": float(len(pairs)),
        "num_tokens": float(sum(pair.tokens for pair in pairs)),
    }


def check_finite(values: dict[str, float], step: int, batch: list[int]) -> None:
    """Raises TrainingError when the step must not be applied."""
    wrong = [name for name in ("dpo_loss", "grad_norm") if not math.isfinite(values[name])]
    if wrong:
        raise TrainingError(
            f"{wrong[0]} is {values[wrong[0]]} at step {step + 1} (pairs {batch[:8]}{'…' if len(batch) > 8 else ''}).",
            "A step with a loss or gradient that is not finite is not applied.",
            "Lower learning_rate, or use precision=fp32; the last checkpoint stands.",
        )


def progress_values(run: Run, step: int, learning_rate: float) -> dict[str, float]:
    """Where the run is: progress = (step + 1)/T with the 0-based step."""
    per_epoch = len(run.rows) // run.settings.batch_size
    return {"learning_rate": learning_rate, "progress": (step + 1) / run.total, "epoch": float(step // per_epoch)}


def speed_values(run: Run, cost: StepFlops, seconds: float) -> dict[str, float]:
    """Time of the step, true tokens and pairs a second (padding never counts), memory, and shares of the peak."""
    told = {
        "batch_time": seconds,
        "perf/pairs_per_s": cost.pairs / seconds,
        "perf/tokens_per_s": cost.tokens / seconds,
        "perf/padding_share": cost.padding_share,
        "perf/peak_memory_gb": peak_memory() / 1e9,
    }
    if run.peak_flops:
        told["perf/mfu_useful"] = cost.useful / seconds / run.peak_flops
        told["perf/mfu_6n"] = cost.conventional / seconds / run.peak_flops
    return told
