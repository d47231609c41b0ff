"""Memory that a CPU process keeps for the next step.

glibc hands every large block back to the kernel when it is freed, and each step gets it again page by page, zeroed:
a training step on a CPU is made of such blocks.
"""

import ctypes
from functools import cache

from dpo_core.system import host_memory

# mallopt(3)'s parameters, and values: no block is mapped on its own, none is given back.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


@cache
def keep_heap() -> None:
    """Freed memory stays with this process, for its next allocation; nothing happens where malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        mallopt(M_MMAP_MAX, 0)


def trim() -> None:
    """Give the system back what is free in this process's heap now; nothing happens where malloc is not glibc's."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def trim_above(limit: int) -> None:
    """Give back what is free once this process holds more than ``limit`` bytes.

    Blocks of ever other sizes leave gaps between them, so that a kept heap grows from microbatch to microbatch; to give
    it back always would cost a small model more than the step.
    """
    if host_memory.resident() > limit:
        trim()
