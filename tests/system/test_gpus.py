"""GPUs that a run cannot use are reported before any work starts. NVIDIA's driver and torch are replaced by fakes."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from dpo_core.config.recipe import Recipe
from dpo_core.errors import RecipeError
from dpo_core.pipeline import base_model
from dpo_core.system import device, gpus

GB = 10**9


def driver(
    monkeypatch: pytest.MonkeyPatch,
    free: float = 80,
    capability: tuple[int, int] = (9, 0),
    cuda: int = 13000,
    holders: tuple[tuple[int, int | None], ...] = (),
) -> None:
    """A machine with one GPU, and torch built for CUDA 12.8."""
    monkeypatch.delenv(gpus.VISIBLE_DEVICES, raising=False)
    results: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetHandleByUUID": "handle",
        "nvmlDeviceGetName": "NVIDIA Card",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(free=int(free * GB), total=80 * GB),
        "nvmlDeviceGetCudaComputeCapability": capability,
        "nvmlDeviceGetComputeRunningProcesses": [
            SimpleNamespace(pid=pid, usedGpuMemory=used and used * GB) for pid, used in holders
        ],
        "nvmlSystemGetCudaDriverVersion": cuda,
    }
    for name, result in results.items():
        monkeypatch.setattr(pynvml, name, lambda *_, result=result: result)
    monkeypatch.setattr(gpus, "torch_build", lambda: ("12.8", "2.13.0+cu128"))


def test_a_memory_shortage_names_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        driver(monkeypatch, free=3, holders=((2**30, None), (own.pid, 70)))
        gpus.check_gpu("bf16", 16 * GB)  # the other process may have ended when this run starts
        line = str(gpus.memory_shortage(16 * GB))
        assert gpus.memory_shortage(2 * GB) is None
    finally:
        own.communicate()
    assert "has 3.0 of 80.0 GB free now" in line
    assert "needs 16.0 GB" in line
    assert f"process {own.pid} (python" in line
    assert "holds 70.0 GB; process 1073741824 (of another user or container) holds memory." in line


def test_a_gpu_with_too_little_total_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch)
    with pytest.raises(RecipeError, match=r"has 80\.0 GB, and training needs 81\.0 GB"):
        gpus.check_gpu("bf16", 81 * GB)


def test_a_gpu_too_old_for_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, capability=(7, 5))
    gpus.check_gpu("fp32", 0)
    with pytest.raises(RecipeError, match=r"NVIDIA Card\) has compute capability 7.5.*8.0.*Set precision=fp32"):
        gpus.check_gpu("bf16", 0)


def test_a_driver_too_old_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, cuda=11040)
    assert gpus.why_on_cpu() == (
        "the NVIDIA driver is too old (it is for CUDA 11.4, torch 2.13.0+cu128 for 12.8): training on the CPU; update"
        " the driver, or install a torch for CUDA 11"
    )
    gpus.check_gpu("bf16", 10**15)  # the GPU is not used
    driver(monkeypatch, cuda=12010)
    assert gpus.why_on_cpu() is None


def test_torch_without_cuda_beside_a_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch)
    monkeypatch.setattr(gpus, "torch_build", lambda: (None, "2.13.0+cpu"))
    assert gpus.why_on_cpu() == "torch 2.13.0+cpu is built without CUDA: training on the CPU, beside a GPU"


def test_a_driver_that_does_not_respond_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    driver(monkeypatch)
    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "version")
    assert gpus.why_on_cpu() is None
    assert gpus.find_gpu() is None
    (tmp_path / "version").touch()
    assert "does not answer" in str(gpus.why_on_cpu())


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_hidden_gpus_are_reported(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver(monkeypatch, free=0)
    monkeypatch.setenv(gpus.VISIBLE_DEVICES, value)
    gpus.check_gpu("bf16", GB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.why_on_cpu() == "CUDA_VISIBLE_DEVICES names no GPU: training on the CPU"
    base_model.check_gpu(Recipe(), Path("nowhere"))
    assert capsys.readouterr().out == "device: CUDA_VISIBLE_DEVICES names no GPU: training on the CPU.\n"


def test_the_gpu_is_the_first_that_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch)
    handles: list[Any] = []
    for name in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID"):
        monkeypatch.setattr(pynvml, name, handles.append)
    for value in ("3,1", "GPU-8f6c"):
        monkeypatch.setenv(gpus.VISIBLE_DEVICES, value)
        gpus.find_gpu()
    assert handles == [3, "GPU-8f6c"]


def test_full_fine_tuning_needs_four_times_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver(monkeypatch, free=1e-6)  # a thousand bytes
    (tmp_path / "model.safetensors").write_bytes(bytes(600))
    base_model.check_gpu(Recipe.model_validate({"model": {"lora_rank": 8}}), tmp_path)
    assert capsys.readouterr().out == ""
    base_model.check_gpu(Recipe.model_validate({"model": {"lora_rank": 0}}), tmp_path)
    assert "GB free now" in capsys.readouterr().out


def test_warnings_of_torch_are_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found version 11040).\nUpdate it.", stacklevel=1)
        return False

    monkeypatch.setattr(device, "CUDA_WARNINGS", [])
    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    monkeypatch.setattr(gpus, "why_on_cpu", lambda: None)
    assert device.device().type == "cpu"
    assert device.why_on_cpu() == (
        "torch finds no GPU that it can use (The NVIDIA driver on your system is too old (found version 11040).)"
    )


def test_flex_attention_and_bf16_need_a_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.flex_attention_obstacle() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    assert device.flex_attention_obstacle() == "Tesla P100 has compute capability 6.0, and FlexAttention needs 7.0"
    assert device.why_on_cpu() is None
    device.check_precision("fp32")
    with pytest.raises(RecipeError, match="Tesla P100"):
        device.check_precision("bf16")


def test_torchs_build_is_read_without_importing_it() -> None:
    script = "import sys; from dpo_core.system import gpus; print(gpus.torch_build(), 'torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == f"{(torch.version.cuda, torch.__version__)} False"
