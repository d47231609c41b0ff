"""NVIDIA GPUs as their driver describes them, asked without torch: who holds their memory, what they are too old for.

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

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/version")
# Compute capability from which on a GPU computes in bf16.
BF16 = (8, 0)

Capability = tuple[int, int]


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU; ``used`` bytes, None where the driver does not say."""

    pid: int
    name: str
    used: int | None

    def __str__(self) -> str:
        held = "memory" if self.used is None else f"{self.used / 1e9:.1f} GB"
        return f"process {self.pid} ({self.name}) holds {held}"


@dataclass(frozen=True)
class Gpu:
    """The GPU that a process would use. ``free`` and ``total`` in bytes."""

    name: str
    capability: Capability
    free: int
    total: int
    holders: tuple[GpuProcess, ...]

    @property
    def held_by(self) -> str:
        """Who holds its memory, as a sentence; empty where nobody is known."""
        return "; ".join(map(str, self.holders)) + "." if self.holders else ""


def hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES names no GPU."""
    return os.environ.get(VISIBLE, "0").strip() in ("", "-1")


@contextmanager
def driver() -> Iterator[bool]:
    """Whether NVIDIA's driver answers; it can be asked inside."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def find() -> Gpu | None:
    """The first GPU that CUDA_VISIBLE_DEVICES allows, None where there is none or the driver does not answer."""
    with driver() as answers:
        try:
            return describe(handle()) if answers and not hidden() and pynvml.nvmlDeviceGetCount() else None
        except pynvml.NVMLError:
            return None


def handle() -> Any:
    """The driver's handle of that GPU: by number, or by its UUID. Of several, CUDA may number another one first; the
    stage asks torch again."""
    first = os.environ.get(VISIBLE, "0").split(",")[0].strip()
    return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(first)


def describe(device: Any) -> Gpu:
    """What the driver says of a GPU."""
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
    holders = [
        GpuProcess(one.pid, process_name(one.pid), one.usedGpuMemory) for one in processes if one.pid != os.getpid()
    ]
    return Gpu(
        name=text(pynvml.nvmlDeviceGetName(device)),
        capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(device)),
        free=int(memory.free),
        total=int(memory.total),
        holders=tuple(sorted(holders, key=lambda holder: -(holder.used or 0))),
    )


def process_name(pid: int) -> str:
    """A process's name; of one in another container it is unknown."""
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "of another user or container"


def text(name: str | bytes) -> str:
    """Older drivers' bindings give bytes."""
    return name.decode() if isinstance(name, bytes) else name


def why_on_cpu() -> str | None:
    """Why training would run on the CPU although somebody might expect a GPU; None where it uses one, or has none."""
    if hidden():
        return f"{VISIBLE} names no GPU: training on the CPU"
    with driver() as answers:
        if not answers:
            return driverless()
        try:
            return unusable() if pynvml.nvmlDeviceGetCount() else None
        except pynvml.NVMLError:
            return None


def driverless() -> str | None:
    """The line for a driver that is loaded and does not answer."""
    if not DRIVER.is_file():
        return None
    return "the NVIDIA driver is loaded and does not answer (see nvidia-smi): training on the CPU"


def unusable() -> str | None:
    """Why the installed torch cannot use the GPU that is there, None if it can."""
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
    """The version of CUDA that the installed torch is built for, and torch's own, without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None
    source = Path(spec.origin).with_name("version.py").read_text()
    found = [re.search(rf"^{name}\b.*= '([^']+)'", source, re.MULTILINE) for name in ("cuda", "__version__")]
    built, release = (match[1] if match else None for match in found)
    return built, release or "(of unknown version)"


def check(precision: str, needed: int) -> None:
    """Raises RecipeError when the GPU that would be used is too old for the precision, or has not the ``needed`` bytes
    even when nobody else uses it. What others hold now they may have given back by this run's turn: :func:`shortage`.
    """
    if why_on_cpu() is not None or (gpu := find()) is None:
        return
    check_precision(gpu.name, gpu.capability, precision)
    if gpu.total < needed:
        raise RecipeError(
            f"The GPU ({gpu.name}) has {gpu.total / 1e9:.1f} GB, and the model with what trains needs"
            f" {needed / 1e9:.1f} GB.",
            "Weights and the optimizer's state must fit before anything is trained.",
            f"Choose another GPU by {VISIBLE}, or train less (lora_rank).",
        )


def shortage(needed: int) -> str | None:
    """A line about others who hold memory of the GPU that this run will need, None where there is enough."""
    if why_on_cpu() is not None or (gpu := find()) is None or gpu.free >= needed:
        return None
    return (
        f"the GPU ({gpu.name}) has {gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free now, and the model with what"
        f" trains needs {needed / 1e9:.1f} GB. {gpu.held_by}".strip()
    )


def check_precision(name: str, capability: Capability, precision: str) -> None:
    """Raises RecipeError when a GPU does not compute in this precision."""
    if precision == "bf16" and capability < BF16:
        raise RecipeError(
            f"precision=bf16, and the GPU ({name}) has compute capability {capability[0]}.{capability[1]}.",
            f"bf16 needs {BF16[0]}.{BF16[1]} or more (Ampere and later).",
            "Set precision=fp32, or choose another GPU.",
        )
