"""Training loop: a generator that yields each optimizer step's metrics. It knows no logger, tracker or callback."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import TrainingError
from dpo_core.records import StepMetrics
from dpo_core.render.token_dataset import TokenDataset, TokenPair
from dpo_core.system.malloc_tuning import trim_above
from dpo_core.train import data_order, schedule
from dpo_core.train.batching.packing import (
    Batch,
    Layout,
    branches,
    build,
    lengths_by_side,
    split_microbatches,
    sums_by_side,
)
from dpo_core.train.logps import autocast, backward
from dpo_core.train.loss import LossSettings, PairLogps, kl_estimate, pair_losses, rewards, wins
from dpo_core.train.reference import Reference
from dpo_core.train.runtime.flops import ModelSizes, StepFlops, peak_memory
from dpo_core.train.runtime.memory_watch import explain_microbatch_memory, interruptible

SUMS = ("dpo_loss", "accuracy", "chosen_reward", "rejected_reward", "kl")


@dataclass(frozen=True)
class Run:
    """A training run: policy, optimizer, pairs, reference and settings.

    ``peak_flops``: FLOP/s of a matrix product on this device, the denominator of MFU (None: no MFU is reported).
    ``heap_limit``: size in bytes of a CPU process above which its free memory is returned after a microbatch (None:
    never).
    """

    policy: nn.Module
    optimizer: torch.optim.Optimizer
    rows: TokenDataset
    reference: Reference
    settings: TrainSettings
    layout: Layout = "tree"
    token_budget: int = 16384
    peak_flops: float | None = None
    heap_limit: int | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return data_order.total_steps(len(self.rows), self.settings)


def steps(run: Run, done: int = 0) -> Iterator[StepMetrics]:
    """Train from ``done`` finished steps to the end, yielding after each step.

    Raises TrainingError when loss or gradient are not finite, and OutOfMemoryError when memory runs out in a
    microbatch; the step is not applied then. torch's own memory error passes when it comes from the optimizer: the
    weights may then be those of no step.
    """
    sizes = ModelSizes.of(run.policy)
    next_batch = load_batch(run, done)
    for step in range(done, run.total_steps):
        started = time.perf_counter()
        learning_rate = set_learning_rate(run, step)
        batch, pairs = next_batch
        sums, microbatches = accumulate_within_memory(run, batch, pairs)
        step_sums = torch.cat([sums, gradient_norm(run.policy)[None].to(sums)])
        enqueued = time.perf_counter()
        next_batch = load_batch(run, step + 1)  # while a GPU is still at work
        loaded = time.perf_counter()
        values = step_values(step_sums.tolist(), pairs)  # the step's only copy to the host
        check_finite(values, step, batch)
        computed = time.perf_counter()
        clip_gradients(run, values["grad_norm"])
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        ended = time.perf_counter()
        values |= progress_values(run, step, learning_rate) | speed_values(
            run, sizes.cost(pairs, microbatches), ended - started
        )
        values |= {
            "time/data": loaded - enqueued,
            "time/forward_backward": computed - started - (loaded - enqueued),
            "time/optimizer": ended - computed,
        }
        yield StepMetrics(step=step + 1, time=time.time(), values=values)


def load_batch(run: Run, step: int) -> tuple[list[int], list[TokenPair]]:
    """The pairs of the 0-based ``step`` and their indices in the training split; none after the last step."""
    batch = data_order.batch_indices(step, len(run.rows), run.settings) if step < run.total_steps else []
    return batch, [run.rows[index] for index in batch]


def accumulate_within_memory(run: Run, batch: list[int], pairs: list[TokenPair]) -> tuple[Tensor, list[Batch]]:
    """:func:`accumulate`. Raises OutOfMemoryError, with the setting to lower, when memory runs out."""
    longest = max(branches(pair).tokens for pair in pairs)
    more = "" if run.settings.activation_checkpointing else ", or set activation_checkpointing=true"
    with explain_microbatch_memory(run.token_budget, longest, more), interruptible():
        return accumulate(run, batch, pairs)


def accumulate(run: Run, batch: Sequence[int], pairs: Sequence[TokenPair]) -> tuple[Tensor, list[Batch]]:
    """Gradient accumulation: add the gradients of the batch's mean loss, whatever its split into microbatches.

    ``batch``: the pairs' indices in the training split. Returns the SUMS, (5,) float64, and the microbatches.
    """
    device = next(run.policy.parameters()).device
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    items, microbatches = [branches(pair) for pair in pairs], []
    with autocast(device, run.settings.precision):
        for group in split_microbatches(run.layout, items, run.token_budget):
            microbatch = build(run.layout, [items[index] for index in group], device)
            reference_logps = run.reference.reference_logps([batch[index] for index in group], microbatch)
            objective = MicrobatchObjective(run.settings, microbatch.counts, reference_logps, len(batch))
            backward(run.policy, microbatch, objective)
            sums += objective.sums
            microbatches.append(microbatch)
            if run.heap_limit:
                trim_above(run.heap_limit)
    return sums, microbatches


class MicrobatchObjective:
    """The loss of a microbatch's pairs, divided by the batch's number of pairs; adds up the reported SUMS.

    ``counts``: Batch.counts. ``reference_logps``: (M,), of the microbatch's trained tokens. ``num_pairs``: pairs of the
    whole batch.
    """

    def __init__(self, settings: LossSettings, counts: Sequence[int], reference_logps: Tensor, num_pairs: int) -> None:
        self.settings, self.counts, self.num_pairs = settings, counts, num_pairs
        self.reference_logps = reference_logps
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=reference_logps.device)

    def __call__(self, policy_logps: Tensor, completions: slice) -> Tensor:
        """The loss of a range of the microbatch's completions, a scalar. ``policy_logps``: (m,), of their tokens."""
        start = sum(self.counts[: completions.start])
        reference_logps = self.reference_logps[start : start + len(policy_logps)]
        logps = pair_logps(policy_logps, reference_logps, self.counts[completions])
        losses = pair_losses(logps, self.settings)
        with torch.no_grad():
            self.sums += metric_sums(losses, logps, self.settings.dpo_beta, kl_estimate(policy_logps, reference_logps))
        return losses.sum() / self.num_pairs


def pair_logps(policy_logps: Tensor, reference_logps: Tensor, counts: Sequence[int]) -> PairLogps:
    """Sums per completion of the trained tokens' log-probabilities, (M,) each. ``counts``: Batch.counts."""
    return PairLogps(
        log_ratios=sums_by_side(policy_logps - reference_logps, counts),
        policy_logps=sums_by_side(policy_logps, counts),
        lengths=lengths_by_side(policy_logps, counts),
    )


def metric_sums(losses: Tensor, logps: PairLogps, dpo_beta: float, kl: Tensor) -> Tensor:
    """The SUMS over pairs, (5,) float64, from losses (B,), summed logps and the tokens' KL estimates (m,)."""
    reward = rewards(logps, dpo_beta)
    parts = (losses, wins(logps.log_ratio_difference), reward.chosen, reward.rejected, kl)
    return torch.stack([part.double().sum() for part in parts])


def set_learning_rate(run: Run, step: int) -> float:
    """Set the optimizer's learning rate for the 0-based ``step``; returns it."""
    train = run.settings
    rate = train.learning_rate * schedule.learning_rate_factor(train.lr_schedule, step, run.total_steps)
    rate *= schedule.warmup_factor(step, train.warmup_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate


def gradient_norm(policy: nn.Module) -> Tensor:
    """L2 norm of all gradients, a scalar tensor."""
    return torch.nn.utils.get_total_norm([p.grad for p in policy.parameters() if p.grad is not None])


def clip_gradients(run: Run, norm: float) -> None:
    """Gradient clipping: scale the gradients so that their norm is at most ``max_grad_norm`` (None: no bound)."""
    bound = run.settings.max_grad_norm
    if bound is not None and norm > bound:
        torch._foreach_mul_([p.grad for p in run.policy.parameters() if p.grad is not None], bound / norm)


def step_values(step_sums: list[float], pairs: Sequence[TokenPair]) -> dict[str, float]:
    """The step's metrics from its SUMS and gradient norm: means over pairs (KL: over trained tokens), and counts.

    Rewards and the margin include the factor β.
    """
    *values, grad_norm = step_sums
    sums = dict(zip(SUMS, values, strict=True))
    means = {name: sums[name] / len(pairs) for name in SUMS[:4]}
    return {
        **means,
        "margin": means["chosen_reward"] - means["rejected_reward"],
        "kl": sums["kl"] / sum(pair.trained for pair in pairs),
        "grad_norm": grad_norm,
        "num_pairs": float(len(pairs)),
        "num_tokens": float(sum(pair.tokens for pair in pairs)),
    }


def check_finite(values: dict[str, float], step: int, batch: list[int]) -> None:
    """Raises TrainingError when the loss or the gradient norm of the 0-based ``step`` is not finite."""
    wrong = [name for name in ("dpo_loss", "grad_norm") if not math.isfinite(values[name])]
    if wrong:
        raise TrainingError(
            f"{wrong[0]} is {values[wrong[0]]} at step {step + 1} (pairs {batch[:8]}{'…' if len(batch) > 8 else ''}).",
            "A step with a loss or gradient that is not finite is not applied.",
            "Lower learning_rate, or use precision=fp32; the last checkpoint stands.",
        )


def progress_values(run: Run, step: int, learning_rate: float) -> dict[str, float]:
    """Learning rate, epoch and progress: (step + 1) / total steps, with the 0-based ``step``."""
    per_epoch = len(run.rows) // run.settings.batch_size
    return {"learning_rate": learning_rate, "progress": (step + 1) / run.total_steps, "epoch": float(step // per_epoch)}


def speed_values(run: Run, cost: StepFlops, seconds: float) -> dict[str, float]:
    """Duration in seconds, pairs and tokens per second (without padding), peak memory in GB, and MFU."""
    values = {
        "batch_time": seconds,
        "perf/pairs_per_s": cost.pairs / seconds,
        "perf/tokens_per_s": cost.tokens / seconds,
        "perf/padding_share": cost.padding_share,
        "perf/peak_memory_gb": peak_memory() / 1e9,
    }
    if run.peak_flops:
        values["perf/mfu_useful"] = cost.useful / seconds / run.peak_flops
        values["perf/mfu_6n"] = cost.conventional / seconds / run.peak_flops
    return values
