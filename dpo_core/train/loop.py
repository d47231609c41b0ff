"""The training loop: a generator of steps that knows no logger, no tracker and no callback."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpo_core.errors import TrainingError
from dpo_core.recipe import TrainSettings
from dpo_core.records import StepMetrics
from dpo_core.render.rendered import Rows
from dpo_core.train import order, schedule
from dpo_core.train.logps import completion_logps
from dpo_core.train.loss import dpo_loss, kl_estimate, wins
from dpo_core.train.packing import microbatches, pad, sides
from dpo_core.train.reference import References

SUMS = (
    "dpo_loss",
    "accuracy",
    "chosen_reward",
    "rejected_reward",
    "kl",
    "trained_tokens",
    "num_tokens",
    "padded_tokens",
)


@dataclass(frozen=True)
class Run:
    """What a training run works on."""

    policy: nn.Module
    optimizer: torch.optim.Optimizer
    rows: Rows
    references: References
    settings: TrainSettings

    @property
    def total(self) -> int:
        """Optimizer steps from beginning to end."""
        return order.total_steps(len(self.rows), self.settings)


def steps(run: Run, done: int = 0) -> Iterator[StepMetrics]:
    """Train from ``done`` finished steps to the end, yielding after each step.

    Raises TrainingError, with the step not applied, when loss or gradient are not finite.
    """
    for step in range(done, run.total):
        started = time.perf_counter()
        learning_rate = set_learning_rate(run, step)
        batch = order.batch(step, len(run.rows), run.settings)
        sums = accumulate(run, batch)
        told = torch.cat([sums, gradient_norm(run.policy)[None]]).tolist()  # the step's one copy to the host
        values = step_values(told, len(batch))
        check_finite(values, step, batch)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        yield StepMetrics(
            step=step + 1, time=time.time(), values=values | progress(run, step, learning_rate) | speed(values, seconds)
        )


def accumulate(run: Run, batch: list[int]) -> Tensor:
    """Gradients of the mean loss over the batch, whatever its split into microbatches; returns the SUMS."""
    device = next(run.policy.parameters()).device
    sums = torch.zeros(len(SUMS), device=device)
    pairs = {index: run.rows[index] for index in batch}
    for group in microbatches([pairs[index].longest for index in batch], run.settings.token_budget):
        indices = [batch[place] for place in group]
        padded = pad([pairs[index] for index in indices]).to(device)
        policy = completion_logps(run.policy, padded, run.settings.precision)
        reference = run.references.padded(indices, padded.trained)
        losses = dpo_loss(sides(policy), sides(reference), run.settings.dpo_beta)
        (losses.losses.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
        tokens = sum(pairs[index].tokens for index in indices)
        with torch.no_grad():
            parts = (losses.losses, wins(losses, run.settings.dpo_beta), losses.rewards.chosen, losses.rewards.rejected)
            kl = kl_estimate(policy, reference).sum()
            counts = torch.tensor([tokens, padded.size], dtype=torch.float32, device=device)
            sums += torch.cat([torch.stack([*(part.sum() for part in parts), kl, padded.trained.sum()]), counts])
    return sums


def set_learning_rate(run: Run, step: int) -> float:
    """Put the schedule's learning rate into the optimizer."""
    rate = run.settings.learning_rate * schedule.factor(run.settings.lr_schedule, step, run.total)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate


def gradient_norm(policy: nn.Module) -> Tensor:
    """The L2 norm of all gradients together, a scalar tensor."""
    gradients: Iterable[Tensor] = [p.grad for p in policy.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def step_values(told: list[float], pairs: int) -> dict[str, float]:
    """Means over all pairs of the step, and its counts (REFERENCE: margins and rewards carry β once)."""
    *sums, grad_norm = told
    named = dict(zip(SUMS, sums, strict=True))
    means = {name: named[name] / pairs for name in SUMS[:4]}
    return {
        **means,
        "margin": means["chosen_reward"] - means["rejected_reward"],
        "kl": named["kl"] / named["trained_tokens"],
        "grad_norm": grad_norm,
        "num_pairs": float(pairs),
        "num_tokens": named["num_tokens"],
        "perf/padding_share": 1 - named["num_tokens"] / named["padded_tokens"],
    }


def check_finite(values: dict[str, float], step: int, batch: list[int]) -> None:
    """Raises TrainingError when the step must not be applied."""
    wrong = [name for name in ("dpo_loss", "grad_norm") if not torch.isfinite(torch.tensor(values[name]))]
    if wrong:
        raise TrainingError(
            f"{wrong[0]} is {values[wrong[0]]} at step {step + 1} (pairs {batch[:8]}{'…' if len(batch) > 8 else ''}).",
            "A step with a loss or gradient that is not finite is not applied.",
            "Lower learning_rate, or use precision=fp32; the last checkpoint stands.",
        )


def progress(run: Run, step: int, learning_rate: float) -> dict[str, float]:
    """Where the run is: progress = (step + 1)/T with the 0-based step."""
    per_epoch = len(run.rows) // run.settings.batch_size
    return {"learning_rate": learning_rate, "progress": (step + 1) / run.total, "epoch": float(step // per_epoch)}


def speed(values: dict[str, float], seconds: float) -> dict[str, float]:
    """Time of the step and true tokens and pairs a second (padding never counts)."""
    return {
        "batch_time": seconds,
        "perf/pairs_per_s": values["num_pairs"] / seconds,
        "perf/tokens_per_s": values["num_tokens"] / seconds,
    }
