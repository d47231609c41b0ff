"""Compute device of torch: GPU or CPU, why it is the CPU, what the GPU does not support, and free memory."""

import warnings

import torch

# Lowest compute capability that Triton supports; FlexAttention and torch.compile need Triton.
TRITON_CAPABILITY = (7, 0)
# First lines of torch's warnings about the GPU (such as a driver too old), which it gives once per process.
CUDA_WARNINGS: list[str] = []


def is_gpu_usable() -> bool:
    """Whether torch can use a GPU; its warnings are added to CUDA_WARNINGS."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    CUDA_WARNINGS.extend(str(warning.message).split("\n")[0] for warning in caught)
    return usable


def device() -> torch.device:
    """The GPU if torch can use one, else the CPU."""
    return torch.device("cuda" if is_gpu_usable() else "cpu")


def why_on_cpu() -> str | None:
    """Why the CPU is used although there is a GPU, or GPUs are hidden; None on a GPU, and on a machine without one."""
    if is_gpu_usable():
        return None
    from dpo_core.system import gpus  # lazy: imports psutil and pynvml, which a served model is installed without

    return gpus.why_on_cpu() or (f"torch finds no GPU that it can use ({CUDA_WARNINGS[0]})" if CUDA_WARNINGS else None)


def check_precision(precision: str) -> None:
    """Raises RecipeError when the GPU that torch uses does not support this precision."""
    if is_gpu_usable():
        from dpo_core.system import gpus  # lazy: as in :func:`why_on_cpu`

        gpus.check_precision(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), precision)


def flex_attention_obstacle() -> str | None:
    """Why FlexAttention cannot run on the GPU; None where it can, and on a CPU, where it is not used."""
    if not is_gpu_usable():
        return None
    capability = torch.cuda.get_device_capability()
    if capability >= TRITON_CAPABILITY:
        return None
    return (
        f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, and FlexAttention"
        f" needs {TRITON_CAPABILITY[0]}.{TRITON_CAPABILITY[1]}"
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device now; on a CPU, the bytes that this process may still allocate."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    from dpo_core.system import host_memory  # lazy: as in :func:`why_on_cpu`

    return host_memory.available()
