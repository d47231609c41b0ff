"""The next token of every row: the likeliest, or one drawn; and how likely it was."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LogProb = tuple[int, float]


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """A new token's log-probability, and those of the likeliest tokens there (as many as were asked for)."""

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


def choose(logits: Tensor, draws: Sequence[random.Random], shape: SamplingDistribution) -> Tensor:
    """The next token of every row, (B,) int64, from float32 logits (B, V): the likeliest, or one draw a row.

    A draw inverts the cumulative distribution at one uniform number of the row's own stream.
    """
    if shape.temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(cut(logits / shape.temperature, shape), dim=-1).cumsum(dim=-1)
    uniform = torch.tensor([[draw.random()] for draw in draws], dtype=logits.dtype, device=logits.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn.squeeze(1).clamp(max=logits.shape[-1] - 1)


def cut(logits: Tensor, shape: SamplingDistribution) -> Tensor:
    """Logits (B, V) with those outside of ``top_k`` and ``top_p`` at −∞."""
    if shape.top_k is not None and shape.top_k < logits.shape[-1]:
        least = logits.topk(shape.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if shape.top_p is not None and shape.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        shares = ordered.softmax(dim=-1)
        beyond = shares.cumsum(dim=-1) - shares >= shape.top_p  # the likeliest stays always
        logits = logits.masked_fill(beyond.gather(-1, places.argsort(dim=-1)), -torch.inf)
    return logits


def score(logits: Tensor, tokens: Tensor, most: int) -> list[TokenLogps]:
    """Log-probabilities of these tokens (B,) under the model itself, temperature and cuts aside, in float32.

    ``most``: how many of the likeliest tokens are told with each.
    """
    logps = logits.float().log_softmax(dim=-1)
    chosen = logps.gather(-1, tokens[:, None])[:, 0].tolist()
    if not most:
        return [TokenLogps(logp) for logp in chosen]
    values, ids = logps.topk(min(most, logps.shape[-1]), dim=-1)
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return [TokenLogps(logp, tuple(zip(*top, strict=True))) for logp, top in zip(chosen, tops, strict=True)]
