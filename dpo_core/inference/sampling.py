"""Token sampling: the next token of every row, greedy or drawn with temperature, top-k and top-p; and token logps."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LogProb = tuple[int, float]


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """A new token's log-probability in nats, and ``top``: the likeliest tokens there as (id, logp), likeliest first."""

    logp: float
    top: tuple[LogProb, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingDistribution:
    """The distribution that tokens are drawn from: softmax(logits / temperature), cut to ``top_k`` and ``top_p``.

    ``temperature`` 0 is greedy. ``top_p``: the fewest likeliest tokens whose probabilities sum up to it
    (Holtzman et al., arXiv 1904.09751).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None


def sample_tokens(logits: Tensor, rngs: Sequence[random.Random], distribution: SamplingDistribution) -> Tensor:
    """The next token of every row, (B,) int64, from float32 logits (B, V) and one random stream a row.

    A draw inverts the cumulative distribution at one uniform number of the row's own stream.
    """
    if distribution.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(filter_logits(logits / distribution.temperature, distribution), dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    uniform = torch.tensor([[rng.random()] for rng in rngs], dtype=logits.dtype, device=logits.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn.squeeze(1).clamp(max=logits.shape[-1] - 1)


def filter_logits(logits: Tensor, distribution: SamplingDistribution) -> Tensor:
    """Logits (B, V) with those outside of ``top_k`` and ``top_p`` at −∞."""
    if distribution.top_k is not None and distribution.top_k < logits.shape[-1]:
        least = logits.topk(distribution.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if distribution.top_p is not None and distribution.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= distribution.top_p  # the likeliest always stays
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(dim=-1)), -torch.inf)
    return logits


def token_logps(logits: Tensor, tokens: Tensor, top_count: int) -> list[TokenLogps]:
    """Float32 log-probabilities of the tokens (B,) int64 under logits (B, V): the model's own, before temperature and
    cuts. ``top_count``: number of likeliest tokens to add to each.
    """
    logps = logits.float().log_softmax(dim=-1)
    sampled = logps.gather(-1, tokens[:, None])[:, 0].tolist()
    if not top_count:
        return [TokenLogps(logp) for logp in sampled]
    values, ids = logps.topk(min(top_count, logps.shape[-1]), dim=-1)
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return [TokenLogps(logp, tuple(zip(*top, strict=True))) for logp, top in zip(sampled, tops, strict=True)]
