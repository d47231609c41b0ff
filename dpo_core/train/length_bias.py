"""Whether a preference for the chosen side is a preference for the longer one."""

import math

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DECILES = 10
# A weak pull of both coefficients towards zero, in pairs: without it, all wins would put the intercept at infinity.
RIDGE = 0.5
NEWTON_STEPS, NEWTON_TOLERANCE = 50, 1e-10


def length_metrics(win: Values, margins: Values, chosen: Values, rejected: Values) -> dict[str, float]:
    """Metrics of held-out pairs from their wins (1, ½ for a tie, 0), margins and tokens of both sides, (N,) each.

    ``test/chosen_length``, ``test/rejected_length``: mean tokens. ``test/longer_chosen``: share of pairs whose chosen
    side is longer. ``test/accuracy_longer_chosen``, ``test/accuracy_shorter_chosen``: accuracy among those where it is,
    and where the rejected one is. ``test/accuracy_length_controlled``: see :func:`length_controlled_accuracy`.
    ``test/margin_length_correlation``: of the margin with the difference in length.
    ``length/accuracy_<d>``, ``length/margin_<d>``, ``length/tokens_<d>``: accuracy, margin and mean tokens of a side by
    decile of the pairs' length, 1 the shortest; only where there are ten pairs or more.
    """
    longer, shorter = chosen > rejected, chosen < rejected
    metrics = {
        "test/chosen_length": float(chosen.mean()),
        "test/rejected_length": float(rejected.mean()),
        "test/longer_chosen": float(longer.mean()),
        "test/accuracy_length_controlled": length_controlled_accuracy(win, chosen - rejected),
        "test/margin_length_correlation": correlation(margins, chosen - rejected),
    }
    metrics |= {
        f"test/accuracy_{name}_chosen": float(win[where].mean())
        for name, where in (("longer", longer), ("shorter", shorter))
        if where.any()
    }
    return metrics | decile_metrics(win, margins, (chosen + rejected) / 2)


def decile_metrics(win: Values, margins: Values, lengths: Values) -> dict[str, float]:
    """Accuracy, margin and mean length of the pairs in each tenth, from the shortest to the longest."""
    if len(lengths) < DECILES:
        return {}
    metrics = {}
    for decile, group in enumerate(np.array_split(np.argsort(lengths, kind="stable"), DECILES), start=1):
        metrics[f"length/accuracy_{decile}"] = float(win[group].mean())
        metrics[f"length/margin_{decile}"] = float(margins[group].mean())
        metrics[f"length/tokens_{decile}"] = float(lengths[group].mean())
    return metrics


def length_controlled_accuracy(win: Values, difference: Values) -> float:
    """Accuracy as it would be if both sides were of one length: σ(a) of the fit σ(a + b·tanh(d / σ_d)) to the wins.

    d is how many tokens the chosen side is longer, σ_d its standard deviation. The regression is that of
    length-controlled AlpacaEval (Dubois et al., arXiv 2404.04475), with one model and one set of pairs.
    """
    spread = difference.std()
    scaled = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    return 1 / (1 + math.exp(-logistic_regression(np.stack([np.ones_like(scaled), scaled], axis=1), win)[0]))


def logistic_regression(features: Values, targets: Values) -> Values:
    """Coefficients (K,) of a logistic regression of targets in [0, 1] (N,) on features (N, K), by Newton's method."""
    weights = np.zeros(features.shape[1])
    for _ in range(NEWTON_STEPS):
        shares = 1 / (1 + np.exp(-features @ weights))
        slope = features.T @ (targets - shares) - RIDGE * weights
        curvature = features.T @ (features * (shares * (1 - shares))[:, None]) + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, slope)
        weights = weights + step
        if np.abs(step).max() < NEWTON_TOLERANCE:
            break
    return weights


def correlation(first: Values, second: Values) -> float:
    """Pearson's, 0 where either does not vary."""
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
