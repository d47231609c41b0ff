"""The device that torch computes on: which it is, why it is no other, what it cannot do, and its free memory."""

import warnings

import torch

# Compute capability from which Triton, which FlexAttention and torch.compile need, has code for a GPU.
TRITON = (7, 0)
# What torch has warned of when it looked for a GPU (a driver too old, say): it does so once.
WARNED: list[str] = []


def on_gpu() -> bool:
    """Whether torch can use a GPU; what it warns of goes to WARNED."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    WARNED.extend(str(warning.message).split("\n")[0] for warning in caught)
    return usable


def device() -> torch.device:
    """The best device that is there."""
    return torch.device("cuda" if on_gpu() else "cpu")


def note() -> str | None:
    """Why the CPU is used although there is a GPU, or one is hidden; None where the device is what one expects."""
    if on_gpu():
        return None
    from dpo_core.system import gpus  # lazy: psutil and pynvml, without which a served model is installed

    return gpus.why_on_cpu() or (f"torch finds no GPU that it can use ({WARNED[0]})" if WARNED else None)


def check(precision: str) -> None:
    """Raises RecipeError when the device does not compute in this precision."""
    if on_gpu():
        from dpo_core.system import gpus  # lazy: as in :func:`note`

        gpus.check_precision(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), precision)


def flex_obstacle() -> str | None:
    """Why FlexAttention cannot run on the GPU that is used; None where it can, and on a CPU, where nothing needs it."""
    if not on_gpu():
        return None
    capability = torch.cuda.get_device_capability()
    if capability >= TRITON:
        return None
    return (
        f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, and FlexAttention"
        f" needs {TRITON[0]}.{TRITON[1]}"
    )


def free_memory(where: torch.device) -> int:
    """Bytes that are free on a device now; on a CPU those that this process may still take."""
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0])
    from dpo_core.system import host_memory  # lazy: as in :func:`note`

    return host_memory.available()
