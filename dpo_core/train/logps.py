"""Log-probabilities of completions under a causal language model, in float32 whatever the model computes in.

The body runs over whole rows; the output head over trained positions only, a bounded number at a time, so that neither
the full (T, V) logits nor anything else of vocabulary × length ever exists.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dpo_core.train.batching.packing import Batch, token_groups
from dpo_core.train.batching.tree_attention import tree_arguments, tree_attention

# Logits that exist at once: 128 MiB in float32, 64 in bf16; on a GPU, where each pass over the head's gradient costs as
# much as thousands of tokens, 2 GiB and 1.
MAX_LOGITS = {"cpu": 2**25, "cuda": 2**29}
# Of them, those whose probabilities a CPU computes at once: 4 MiB in its cache.
MAX_LOGITS_IN_CACHE = 2**20

Objective = Callable[[Tensor, slice], Tensor]


def completion_logps(model: nn.Module, batch: Batch, precision: str = "fp32") -> Tensor:
    """log p(y_t | y_<t) of every trained token, (M,) float32 (float64 from a float64 model), without gradient.

    precision: fp32, or bf16 for autocast compute under float32 weights.
    """
    with torch.no_grad(), autocast(batch.ids.device, precision):
        hidden = hidden_states(model, batch)
        size = head_tokens(model)
        parts = [
            head_logps(model, hidden[start : start + size], batch.targets[start : start + size])
            for start in range(0, len(hidden), size)
        ]
    return torch.cat(parts)


def backward(model: nn.Module, batch: Batch, objective: Objective, group_size: int = 2) -> None:
    """Add to the gradients those of Σ objective(logps, completions) over ranges of the batch's completions.

    ``objective`` gets the log-probabilities of a range's trained tokens, (m,) float32, and the range; it returns a
    scalar that depends on them alone. ``group_size`` completions in a row are never parted (2: a pair). Each range's
    logits are made, differentiated and dropped before the next; the body's backward pass follows once. Call it under
    autocast.
    """
    with layout_attention(model, batch):  # also while activations are computed again
        hidden = hidden_states(model, batch)
        gradients = []
        start = 0
        for first, last in token_groups(batch.counts, head_tokens(model), group_size):
            end = start + sum(batch.counts[first:last])
            part = hidden[start:end], batch.targets[start:end]
            gradients.append(head_backward(model, part, objective, slice(first, last)))
            start = end
        run_backward(hidden, torch.cat(gradients))


def head_backward(model: nn.Module, part: tuple[Tensor, Tensor], objective: Objective, completions: slice) -> Tensor:
    """Gradients of one range's objective with respect to its hidden states, (m, D); the head's own are accumulated.

    ``part``: the range's hidden states (m, D) and targets (m,).
    A range beyond the bound is gone through twice, piece by piece: for the log-probabilities, then for the gradients.
    """
    size, (hidden, targets) = head_tokens(model), part
    leaf = hidden.detach().requires_grad_()
    if len(leaf) <= size:
        run_backward(objective(head_logps(model, leaf, targets), completions), None)
        return gradient_of(leaf)
    pieces = [slice(start, start + size) for start in range(0, len(leaf), size)]
    with torch.no_grad():
        logps = torch.cat([head_logps(model, leaf[piece], targets[piece]) for piece in pieces])
    run_backward(objective(logps.requires_grad_(), completions), None)
    for piece in pieces:
        run_backward(head_logps(model, leaf[piece], targets[piece]), gradient_of(logps)[piece])
    return gradient_of(leaf)


def run_backward(value: Tensor, gradient: Tensor | None) -> None:
    """A backward pass, outside of autocast: its operations take the types of the forward ones."""
    with without_autocast(value.device):
        value.backward(gradient)  # type: ignore[no-untyped-call]


def gradient_of(leaf: Tensor) -> Tensor:
    """A leaf's gradient."""
    assert leaf.grad is not None
    return leaf.grad


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bf16 autocast, or nothing. Weights are cast once inside it, however many microbatches it spans."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast switched off for a while; its cached weights stay."""
    return torch.autocast(device.type, enabled=False)


def hidden_states(model: nn.Module, batch: Batch, embedded: Tensor | None = None) -> Tensor:
    """The decoder's last hidden states that predict the trained tokens, (M, D).

    ``embedded``: embeddings (R, T, D) to begin with, in place of the model's own of the batch's tokens.
    """
    causal = causal_model(model)
    arguments = tree_arguments(causal, batch) if batch.spans else {"attention_mask": attention_mask(batch)}
    with layout_attention(model, batch):
        arguments |= {"input_ids": batch.ids} if embedded is None else {"inputs_embeds": embedded}
        outputs = causal.get_decoder()(position_ids=batch.positions, use_cache=False, **arguments)
    hidden: Tensor = outputs.last_hidden_state
    return hidden.flatten(0, 1).index_select(0, batch.predictors)


def layout_attention(model: nn.Module, batch: Batch) -> AbstractContextManager[None]:
    """The layers attend as the batch's layout needs it."""
    return tree_attention(causal_model(model)) if batch.spans else nullcontext()


def attention_mask(batch: Batch) -> Tensor:
    """A padded batch's attention mask as transformers takes it."""
    assert batch.attention is not None
    return batch.attention.long()


def head_logps(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p of the targets (m,) from hidden states (m, D): the head in the model's type, log-softmax in float32."""
    return TargetLogps.apply(head_logits(model, hidden), targets)  # type: ignore[no-any-return, no-untyped-call]


class TargetLogps(torch.autograd.Function):
    """log softmax(z)_y = z_y − logsumexp(z) of logits (m, V) at targets (m,), in the memory of the logits alone.

    Computed in float32 (float64 of float64 logits), some rows at a time or in fused kernels, so that no copy of all
    logits in that type is ever made. The gradient, (1_y − softmax(z)) g, is written over the logits, which nothing else
    may need by then; one backward pass is all there can be.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """The log-probabilities, (m,)."""
        if logits.is_cuda:
            normaliser: Tensor = fused_kernel(logsumexp_rows)(logits)
        else:
            normaliser = torch.cat([logsumexp_rows(rows) for rows in torch.split(logits, rows_in_cache(logits))])
        ctx.save_for_backward(logits, targets, normaliser)
        return to_float32(logits.gather(-1, targets[:, None])[:, 0]) - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The logits' gradient, (m, V), over the logits themselves."""
        logits, targets, normaliser = ctx.saved_tensors
        columns = [part[:, None] for part in (targets, normaliser, gradients[0])]
        if logits.is_cuda:
            fused_kernel(write_logits_gradient)(logits, *columns)
            return logits, None
        size = rows_in_cache(logits)
        for rows, target, offset, upstream in zip(*(torch.split(p, size) for p in (logits, *columns)), strict=True):
            slope = to_float32(rows).sub_(offset).exp_().mul_(-upstream)
            rows.copy_(slope.scatter_add_(-1, target, upstream))
        return logits, None


def logsumexp_rows(logits: Tensor) -> Tensor:
    """logsumexp of each row (m, V)."""
    return to_float32(logits).logsumexp(-1)


def write_logits_gradient(logits: Tensor, targets: Tensor, normaliser: Tensor, upstream: Tensor) -> None:
    """TargetLogps' gradient over the logits (m, V), in operations that fuse into one; the rest are columns (m, 1)."""
    hit = torch.arange(logits.shape[1], device=logits.device) == targets
    logits.copy_((hit.to(upstream.dtype) - (to_float32(logits) - normaliser).exp()) * upstream)


@cache
def fused_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for a GPU, for any number of rows."""
    return torch.compile(function, dynamic=True)


def to_float32(logits: Tensor) -> Tensor:
    """In the type that probabilities are computed in: float32, or float64 where it is already that."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def rows_in_cache(logits: Tensor) -> int:
    """Rows whose float32 copy stays in a CPU's cache."""
    return max(1, MAX_LOGITS_IN_CACHE // logits.shape[1])


def head_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (m, V) of hidden states (m, D), as the model's own forward makes them."""
    causal = causal_model(model)
    logits: Tensor = causal.get_output_embeddings()(hidden)
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def head_tokens(model: nn.Module) -> int:
    """Positions that the head takes at once."""
    weight = causal_model(model).get_output_embeddings().weight
    return max(1, MAX_LOGITS[weight.device.type] // int(weight.shape[0]))


def causal_model(model: nn.Module) -> Any:
    """The transformers model inside peft's wrapper; adapters stay in its layers."""
    return getattr(model, "get_base_model", lambda: model)()
