"""Paired significance tests: McNemar's test and bootstrap intervals for two models on the same prompts. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np

RESAMPLES = 10_000
LOW, HIGH = 2.5, 97.5


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """One score of two models on the prompts that both have.

    ``first``, ``second``: the models' means. ``low``, ``high``: 95 % bootstrap interval of the difference. ``gained``,
    ``lost``: ids of the prompts on which the first model is higher, lower. ``p``: of McNemar's exact test when
    ``is_binary`` (every value is 0 or 1), otherwise of the sign test; both have the same formula. ``are_shares``: every
    value is between 0 and its size.
    """

    prompts: int
    first: float
    second: float
    low: float
    high: float
    p: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    is_binary: bool
    are_shares: bool

    @property
    def difference(self) -> float:
        """The first model's mean minus the second's."""
        return self.first - self.second


def compare_paired(
    first: Mapping[str, float], second: Mapping[str, float], sizes: Mapping[str, float] | None = None, seed: int = 0
) -> PairedComparison:
    """Compare two models' values by prompt id; prompts that only one model has are left out.

    ``sizes``: number of items that a prompt's value sums over (its instructions), 1 by default. The bootstrap resamples
    prompts. Raises ValueError when no prompt is in common.
    """
    keys = [key for key in first if key in second]
    if not keys:
        raise ValueError("two models without a prompt in common cannot be compared")
    values, other = (np.array([model[key] for key in keys], dtype=np.float64) for model in (first, second))
    weights = np.array([sizes[key] if sizes else 1.0 for key in keys])
    low, high = bootstrap(values - other, weights, seed)
    gained = tuple(key for key, difference in zip(keys, values - other, strict=True) if difference > 0)
    lost = tuple(key for key, difference in zip(keys, values - other, strict=True) if difference < 0)
    total = float(weights.sum())
    return PairedComparison(
        prompts=len(keys),
        first=float(values.sum()) / total,
        second=float(other.sum()) / total,
        low=low,
        high=high,
        p=mcnemar(len(gained), len(lost)),
        gained=gained,
        lost=lost,
        is_binary=bool(np.isin(np.stack([values, other]), (0, 1)).all()),
        are_shares=bool(((values >= 0) & (values <= weights) & (other >= 0) & (other <= weights)).all()),
    )


def bootstrap(
    differences: np.ndarray[tuple[int], np.dtype[np.float64]],
    sizes: np.ndarray[tuple[int], np.dtype[np.float64]],
    seed: int,
) -> tuple[float, float]:
    """The 95 % percentile interval of Σ difference / Σ size over prompts drawn with replacement (Efron 1979).

    ``differences``, ``sizes``: float64 ``[prompts]``.
    """
    rng, count = np.random.default_rng(seed), len(differences)
    # Counts of each prompt in each resample, [resamples, prompts]: the order of draws does not matter.
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.percentile(draws @ differences / (draws @ sizes), [LOW, HIGH])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of ``gained`` against ``lost`` discordant pairs (McNemar 1947)."""
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**n))
