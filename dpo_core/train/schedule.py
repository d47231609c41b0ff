"""Learning-rate schedules (lr_scheduler) as factors of the peak learning rate."""

import math


def learning_rate_factor(name: str, step: int, total: int) -> float:
    """The share of the peak learning rate at the 0-based ``step`` of ``total``.

    linear: 1 − step/T; cosine: ½(1 + cos(π·step/T)); constant: 1.
    """
    if name == "linear":
        return 1 - step / total
    if name == "cosine":
        return (1 + math.cos(math.pi * step / total)) / 2
    return 1.0


def warmup_factor(step: int, steps: int) -> float:
    """The share of the scheduled rate at the 0-based ``step``: rising linearly over the first ``steps``, then 1."""
    return min(1.0, (step + 1) / steps) if steps else 1.0
