"""How sure a share is."""

import math

Z_95 = 1.959964


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of ``count`` trials (Wilson, JASA 22, 1927).

    Unlike Wald's it has a width where the share is 0 or 1.
    """
    centre = share + Z_95**2 / (2 * count)
    spread = Z_95 * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    scale = 1 + Z_95**2 / count
    return (centre - spread) / scale, (centre + spread) / scale
