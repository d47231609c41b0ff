"""Two models on the same prompts: what one gets right and the other does not decides. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np

RESAMPLES = 10_000
LOW, HIGH = 2.5, 97.5


@dataclass(frozen=True, slots=True)
class Paired:
    """One measure of two models on the prompts that both have: means, difference with its 95 % bootstrap interval.

    ``gained``: prompts on which ``ours`` is higher; ``lost``: lower. ``p`` is McNemar's where every value is 0 or 1,
    and the sign test's otherwise: the same formula. ``is_binary`` says which. ``are_shares``: every value is from 0 to
    its size.
    """

    prompts: int
    ours: float
    theirs: float
    low: float
    high: float
    p: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    is_binary: bool
    are_shares: bool

    @property
    def difference(self) -> float:
        """How much higher ours is."""
        return self.ours - self.theirs


def compare(
    ours: Mapping[str, float], theirs: Mapping[str, float], sizes: Mapping[str, float] | None = None, seed: int = 0
) -> Paired:
    """Values by prompt of two models; the prompts that only one has are left out.

    ``sizes``: what a prompt's value is a sum over (its instructions); by default 1. Prompts are what is drawn again.
    """
    keys = [key for key in ours if key in theirs]
    if not keys:
        raise ValueError("two models without a prompt in common cannot be compared")
    one, other = (np.array([told[key] for key in keys], dtype=np.float64) for told in (ours, theirs))
    weights = np.array([sizes[key] if sizes else 1.0 for key in keys])
    low, high = bootstrap(one - other, weights, seed)
    gained = tuple(key for key, difference in zip(keys, one - other, strict=True) if difference > 0)
    lost = tuple(key for key, difference in zip(keys, one - other, strict=True) if difference < 0)
    total = float(weights.sum())
    return Paired(
        prompts=len(keys),
        ours=float(one.sum()) / total,
        theirs=float(other.sum()) / total,
        low=low,
        high=high,
        p=mcnemar(len(gained), len(lost)),
        gained=gained,
        lost=lost,
        is_binary=bool(np.isin(np.stack([one, other]), (0, 1)).all()),
        are_shares=bool(((one >= 0) & (one <= weights) & (other >= 0) & (other <= weights)).all()),
    )


def bootstrap(
    differences: np.ndarray[tuple[int], np.dtype[np.float64]],
    sizes: np.ndarray[tuple[int], np.dtype[np.float64]],
    seed: int,
) -> tuple[float, float]:
    """The 95 % percentile interval of Σ difference / Σ size over prompts drawn with replacement (Efron 1979)."""
    rng, count = np.random.default_rng(seed), len(differences)
    # How often each prompt is drawn, which is all that matters.
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.percentile(draws @ differences / (draws @ sizes), [LOW, HIGH])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of ``gained`` against ``lost`` discordant pairs, each way as likely: exact (McNemar 1947)."""
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**n))
