"""Export noise: how far writing the trained model as plain weights moved the log-probabilities of held-out replies."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from dpo_core.records import MARGIN_NOISE
from dpo_core.wilson import Z_95, wilson


def export_differences(trained: Tensor, exported: Tensor) -> dict[str, float]:
    """Metrics of the same N pairs' summed logps, (N, 2) each (chosen, rejected), float64, before and after exporting.

    ``export/nats_a_reply``: mean absolute difference of a reply's log-probability; ``…_low``, ``…_high``: its 95 %
    interval, in which a pair's two replies count as one observation. ``export/margin_noise``: root mean square of the
    difference in Δ_chosen − Δ_rejected, so that a shift of all margins counts as well as scatter. In nats.
    ``export/num_pairs``: N.
    """
    moved = exported - trained
    each = moved.abs().mean(1)
    mean = each.mean().item()
    spread = Z_95 * each.std().item() / sqrt(len(each)) if len(each) > 1 else 0.0
    return {
        "export/nats_a_reply": mean,
        "export/nats_a_reply_low": max(0.0, mean - spread),
        "export/nats_a_reply_high": mean + spread,
        MARGIN_NOISE: (moved[:, 0] - moved[:, 1]).square().mean().sqrt().item(),
        "export/num_pairs": float(len(moved)),
    }


def accuracy_beyond_noise(margins: Sequence[float], noise: float) -> dict[str, float]:
    """Held-out accuracy when what is within the export's noise is left open; nothing for a model without noise.

    ``margins``: Δ_chosen − Δ_rejected of each pair, in nats. A pair whose margin is no further from zero than 1.96
    ``noise`` counts ½, as a tie does. ``test/accuracy_beyond_noise`` with its Wilson interval ``…_low``, ``…_high``;
    ``test/within_noise``: share of such pairs; ``test/margin_noise``: ``noise``, in nats.
    """
    if noise == 0:
        return {}
    values, band = torch.tensor(margins, dtype=torch.float64), Z_95 * noise
    within = (values.abs() <= band).double()
    accuracy = ((values > band).double() + within / 2).mean().item()
    low, high = wilson(accuracy, len(values))
    return {
        "test/accuracy_beyond_noise": accuracy,
        "test/accuracy_beyond_noise_low": low,
        "test/accuracy_beyond_noise_high": high,
        "test/within_noise": within.mean().item(),
        "test/margin_noise": noise,
    }
