"""malloc tuning for CPU processes: freed memory stays with the process for the next step.

By default glibc returns every large block to the kernel when it is freed, and the next step gets it again page by
page, zeroed. A training step on a CPU allocates mostly such blocks.
"""

import ctypes
from functools import cache

from dpo_core.system import host_memory

# mallopt(3)'s parameters: no block gets a mapping of its own (M_MMAP_MAX), and the heap is never trimmed.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


@cache
def keep_heap() -> None:
    """Keep freed memory in this process for its next allocations. Does nothing where malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        mallopt(M_MMAP_MAX, 0)


def trim() -> None:
    """Return the heap's free memory to the system now. Does nothing where malloc is not glibc's."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def trim_above(limit: int) -> None:
    """Return the heap's free memory to the system if this process holds more than ``limit`` bytes.

    Blocks of varying sizes fragment a kept heap, so that it grows from microbatch to microbatch. Trimming after each
    microbatch would cost a small model more time than the step.
    """
    if host_memory.resident() > limit:
        trim()
