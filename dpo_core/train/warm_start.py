"""The warm start: a short supervised phase, so that the policy writes like the data before it learns preferences."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpo_core.errors import TrainingError
from dpo_core.model.export import save_model
from dpo_core.model.load import load_model
from dpo_core.model.source import describe
from dpo_core.recipe import WarmStartSettings
from dpo_core.render.rendered import Completion, Ids, Rows, open_split
from dpo_core.requests import WarmStartRequest
from dpo_core.store import Draft
from dpo_core.train import schedule
from dpo_core.train.logps import completion_logps
from dpo_core.train.order import permutation
from dpo_core.train.packing import microbatches, pad_rows

BETAS = (0.9, 0.95)
# Instead of the usual five: each takes about 11 ms of the demo's step on two cores.
MUON_ITERATIONS = 3
WARM_UP_STEPS = 20
LARGEST_GRADIENT = 1.0
# So many batches are drawn together and shared out by length: rows of one batch then need little padding.
BATCHES_A_WINDOW = 32
# Separates this phase's draws from those of other users of the same seed.
STREAM = 1

Example = tuple[Ids, Completion]


@dataclass(frozen=True)
class Phase:
    """What a warm start works on: ``rows`` gives the completions, ``seed`` decides their order and sides."""

    model: nn.Module
    rows: Rows
    settings: WarmStartSettings
    seed: int
    token_budget: int = 16384
    precision: str = "fp32"
    from_scratch: bool = False


def fit(phase: Phase) -> Iterator[float]:
    """Minimise the mean negative log-likelihood per trained token; yields each step's, in nats, before the step.

    The learning rate rises over the first steps and then falls linearly to zero; the gradient's norm is clipped.
    Raises TrainingError, with the step not applied, when the loss or the gradient is not finite.
    """
    parameters = [parameter for parameter in phase.model.parameters() if parameter.requires_grad]
    working = optimizers(phase)
    for step, batch in enumerate(batches(phase)):
        loss = accumulate(phase, batch)
        norm = float(nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT))
        check_finite(loss, norm, step)
        for optimizer in working:
            set_learning_rate(optimizer, step, phase.settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss


def optimizers(phase: Phase) -> list[torch.optim.Optimizer]:
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
    factor = min(1.0, (step + 1) / WARM_UP_STEPS) * schedule.factor("linear", step, settings.sft_steps)
    for group in optimizer.param_groups:
        group["lr"] = settings.sft_learning_rate * factor


def accumulate(phase: Phase, batch: list[Example]) -> float:
    """Gradients of the batch's mean loss per trained token, whatever its split into microbatches; returns that mean."""
    device = next(phase.model.parameters()).device
    trained = sum(int(completion.mask.sum()) for _, completion in batch)
    lengths = [len(prompt) + len(completion.ids) for prompt, completion in batch]
    total = torch.zeros((), device=device)
    # A budget is told for pairs, whose two sides stand in one microbatch; here a row is one side.
    for group in microbatches(lengths, 2 * phase.token_budget):
        padded = pad_rows([batch[place] for place in group]).to(device)
        loss = -completion_logps(phase.model, padded, phase.precision).sum() / trained
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return float(total)


def check_finite(loss: float, norm: float, step: int) -> None:
    """Raises TrainingError when the step must not be applied."""
    if not np.isfinite([loss, norm]).all():
        raise TrainingError(
            f"The warm start's loss is {loss} and its gradient {norm} at step {step + 1}.",
            "A step with a loss or gradient that is not finite is not applied.",
            "Lower sft_learning_rate, or use precision=fp32.",
        )


def batches(phase: Phase) -> Iterator[list[Example]]:
    """``sft_steps`` lists of ``sft_batch_size`` completions of like length, as rows, settings and seed decide."""
    size = phase.settings.sft_batch_size
    rng = np.random.default_rng([phase.seed, STREAM])
    drawn = draw(len(phase.rows), phase.settings, phase.seed)
    sides = rng.random(len(drawn)) < phase.settings.sft_chosen_fraction
    for start in range(0, len(drawn), size * BATCHES_A_WINDOW):
        window = slice(start, start + size * BATCHES_A_WINDOW)
        examples = [
            example(phase.rows, *one) for one in zip(drawn[window].tolist(), sides[window].tolist(), strict=True)
        ]
        examples.sort(key=lambda one: len(one[0]) + len(one[1].ids))
        for place in rng.permutation(len(examples) // size):
            yield examples[place * size : (place + 1) * size]


def draw(pairs: int, settings: WarmStartSettings, seed: int) -> NDArray[np.int64]:
    """Which pair each completion of the phase comes from: every pair once an epoch, (steps × batch,) int64."""
    wanted = settings.sft_steps * settings.sft_batch_size
    epochs = [permutation(seed, epoch, pairs) for epoch in range(-(-wanted // pairs))]
    return np.concatenate(epochs)[:wanted]


def example(rows: Rows, index: int, chosen: bool) -> Example:
    """One side of a pair after its prompt."""
    pair = rows[index]
    return pair.prompt, pair.sides.chosen if chosen else pair.sides.rejected


def run(request: WarmStartRequest, draft: Draft) -> None:
    """Fit the model to the training pairs' completions; publish it as a ModelSource."""
    source, rendered = request.model, request.rendered
    model = load_model(source.path, request.seed, source.trust_remote_code)
    rows = open_split(rendered.path, "train")
    numerics = (request.token_budget, request.precision)
    report(Phase(model, rows, request.warm_start, request.seed, *numerics, from_scratch=not source.has_weights))
    save_model(model, rendered.tokenizer_path, rendered.renderer_name, draft.path / "model")
    draft.publish(describe(draft.path / "model", f"{source.name} (warm)", draft.final / "model"))


def report(phase: Phase) -> None:
    """Go through the phase, saying a tenth at a time how far it is."""
    total = phase.settings.sft_steps
    for done, loss in enumerate(fit(phase), 1):
        if done % max(1, total // 10) == 0:
            print(f"warm start {done}/{total}: {loss:.3f} nats a token", flush=True)
