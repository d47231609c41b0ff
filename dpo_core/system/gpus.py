"""NVIDIA GPUs as the driver describes them, without torch: memory and its users, compute capability, driver version.

``pynvml`` is the module of nvidia-ml-py.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pynvml  # type: ignore[import-untyped]

from dpo_core.errors import RecipeError

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/version")
# Lowest compute capability that supports bf16.
BF16_CAPABILITY = (8, 0)

Capability = tuple[int, int]


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses GPU memory: ``used`` bytes, None where the driver does not report it."""

    pid: int
    name: str
    used: int | None

    def __str__(self) -> str:
        amount = "memory" if self.used is None else f"{self.used / 1e9:.1f} GB"
        return f"process {self.pid} ({self.name}) holds {amount}"


@dataclass(frozen=True)
class Gpu:
    """The GPU that this process would use: memory in bytes, and the other processes that use it, largest first."""

    name: str
    capability: Capability
    free: int
    total: int
    holders: tuple[GpuProcess, ...]

    @property
    def held_by(self) -> str:
        """The other processes that use its memory, as a sentence; empty if there are none."""
        return "; ".join(map(str, self.holders)) + "." if self.holders else ""


def are_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES names no GPU."""
    return os.environ.get(VISIBLE_DEVICES, "0").strip() in ("", "-1")


@contextmanager
def open_driver() -> Iterator[bool]:
    """NVML is initialized inside; yields whether NVIDIA's driver responds."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def find_gpu() -> Gpu | None:
    """The first GPU that CUDA_VISIBLE_DEVICES allows, None if there is none or the driver does not respond."""
    with open_driver() as responds:
        try:
            return describe_gpu(gpu_handle()) if responds and not are_hidden() and pynvml.nvmlDeviceGetCount() else None
        except pynvml.NVMLError:
            return None


def gpu_handle() -> Any:
    """NVML's handle of that GPU, by number or UUID.

    CUDA may number several GPUs in another order than NVML, so the stages check the precision again through torch.
    """
    first = os.environ.get(VISIBLE_DEVICES, "0").split(",")[0].strip()
    return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(first)


def describe_gpu(device: Any) -> Gpu:
    """A GPU from its NVML handle."""
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
    holders = [
        GpuProcess(process.pid, process_name(process.pid), process.usedGpuMemory)
        for process in processes
        if process.pid != os.getpid()
    ]
    return Gpu(
        name=to_text(pynvml.nvmlDeviceGetName(device)),
        capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(device)),
        free=int(memory.free),
        total=int(memory.total),
        holders=tuple(sorted(holders, key=lambda holder: -(holder.used or 0))),
    )


def process_name(pid: int) -> str:
    """A process's name; processes in other containers have none here."""
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "of another user or container"


def to_text(name: str | bytes) -> str:
    """A name as text: older NVML bindings return bytes."""
    return name.decode() if isinstance(name, bytes) else name


def why_on_cpu() -> str | None:
    """Why training would run on the CPU although there is a GPU, or GPUs are hidden; None otherwise."""
    if are_hidden():
        return f"{VISIBLE_DEVICES} names no GPU: training on the CPU"
    with open_driver() as responds:
        if not responds:
            return silent_driver()
        try:
            return torch_obstacle() if pynvml.nvmlDeviceGetCount() else None
        except pynvml.NVMLError:
            return None


def silent_driver() -> str | None:
    """The message for a driver that is loaded and does not respond; None if no driver is loaded."""
    if not DRIVER.is_file():
        return None
    return "the NVIDIA driver is loaded and does not answer (see nvidia-smi): training on the CPU"


def torch_obstacle() -> str | None:
    """Why the installed torch cannot use the GPU, None if it can."""
    built, release = torch_build()
    if release is None or built is None:
        return None if release is None else f"torch {release} is built without CUDA: training on the CPU, beside a GPU"
    version = int(pynvml.nvmlSystemGetCudaDriverVersion())
    if version // 1000 >= int(built.split(".")[0]):
        return None
    return (
        f"the NVIDIA driver is too old (it is for CUDA {version // 1000}.{version % 1000 // 10}, torch {release} for"
        f" {built}): training on the CPU; update the driver, or install a torch for CUDA {version // 1000}"
    )


def torch_build() -> tuple[str | None, str | None]:
    """The CUDA version that the installed torch is built for, and torch's own version, without importing it.

    Each is None if torch is not installed; the CUDA version is None for a CPU build.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None
    source = Path(spec.origin).with_name("version.py").read_text()
    matches = [re.search(rf"^{name}\b.*= '([^']+)'", source, re.MULTILINE) for name in ("cuda", "__version__")]
    built, release = (match[1] if match else None for match in matches)
    return built, release or "(of unknown version)"


def check_gpu(precision: str, needed: int) -> None:
    """Raises RecipeError when the GPU does not support the precision, or its total memory is below ``needed`` bytes.

    Memory that other processes use now may be free when this run starts: :func:`memory_shortage` reports it.
    """
    if why_on_cpu() is not None or (gpu := find_gpu()) is None:
        return
    check_precision(gpu.name, gpu.capability, precision)
    if gpu.total < needed:
        raise RecipeError(
            f"The GPU ({gpu.name}) has {gpu.total / 1e9:.1f} GB, and training needs {needed / 1e9:.1f} GB.",
            "The weights and the optimizer's state must fit into its memory.",
            f"Choose another GPU by {VISIBLE_DEVICES}, or train fewer weights (lora_rank).",
        )


def memory_shortage(needed: int) -> str | None:
    """A message if less than ``needed`` bytes of the GPU are free now, with the processes that use it; else None."""
    if why_on_cpu() is not None or (gpu := find_gpu()) is None or gpu.free >= needed:
        return None
    return (
        f"the GPU ({gpu.name}) has {gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free now, and"
        f" training needs {needed / 1e9:.1f} GB. {gpu.held_by}".strip()
    )


def check_precision(name: str, capability: Capability, precision: str) -> None:
    """Raises RecipeError when a GPU does not support this precision."""
    if precision == "bf16" and capability < BF16_CAPABILITY:
        raise RecipeError(
            f"precision=bf16, and the GPU ({name}) has compute capability {capability[0]}.{capability[1]}.",
            f"bf16 needs {BF16_CAPABILITY[0]}.{BF16_CAPABILITY[1]} or more (Ampere and later).",
            "Set precision=fp32, or choose another GPU.",
        )
