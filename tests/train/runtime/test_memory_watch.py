"""A step that would drive the machine into swapping is broken off."""

import time
from pathlib import Path

import pytest
import torch

from dpo_core.errors import OutOfMemoryError
from dpo_core.system import host_memory
from dpo_core.train.runtime import memory_watch
from dpo_core.train.runtime.memory_watch import MemoryWatch, explain_microbatch_memory, interruptible, shortage

GB = 10**9
STATISTICS = "inactive_file 7\nactive_file 7\ntotal_inactive_file 50\ntotal_active_file 30"


def machine(monkeypatch: pytest.MonkeyPatch, left: float, swapped: float = 0) -> None:
    monkeypatch.setattr(host_memory, "available", lambda: int(left * GB))
    monkeypatch.setattr(host_memory, "total", lambda: 24 * GB)
    monkeypatch.setattr(host_memory, "swapped", lambda: int(swapped * GB))


def test_little_memory_or_much_swapping_is_short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 3)
    assert shortage(0) == ""
    machine(monkeypatch, 0.3)
    assert shortage(0) == "0.30 of 24.0 GB of memory are left"
    machine(monkeypatch, 2, swapped=5)
    assert shortage(5 * GB) == ""
    assert shortage(0).startswith("5.0 GB were swapped out since training began")


def test_a_step_is_broken_off_where_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0.1)
    with MemoryWatch(on=True, every=0.02):
        time.sleep(0.2)  # outside of a step nothing happens
        with pytest.raises(OutOfMemoryError, match=r"token_budget=512 \(0.10 of 24.0 GB of memory are left\)"):
            step(5)
    machine(monkeypatch, 10)
    with MemoryWatch(on=True, every=0.02):
        step(0.2)


def step(seconds: float) -> None:
    with explain_microbatch_memory(512, 100), interruptible():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            torch.ones(8).sum()


def test_on_a_gpu_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0.1)
    with MemoryWatch(on=False, every=0.02), interruptible():
        time.sleep(0.1)


def test_errors_of_another_kind_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_microbatch_memory(512, 100):
        raise RuntimeError("shapes do not match")
    with (
        pytest.raises(OutOfMemoryError, match="longest pair has 100 tokens: set token_budget=256"),
        explain_microbatch_memory(512, 100),
    ):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def test_a_control_groups_limit_is_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "user" / "job"
    group.mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("1:cpu:/elsewhere\n0::/user/job\n")
    monkeypatch.setattr(host_memory, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(host_memory, "MEMBERSHIP", membership)
    machines = host_memory.total()
    (group / "memory.max").write_text("max\n")
    assert host_memory.total() == machines
    for folder, limit in ((group, 1000), (group.parent, 800)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 400\ninactive_file 100\nactive_file 50\nslab_reclaimable 25\n")
    assert (host_memory.total(), host_memory.available()) == (800, 275)
    membership.write_text("4:memory:/job\n")
    old = tmp_path / "memory" / "job"
    old.mkdir(parents=True)
    for name, value in (("limit_in_bytes", 500), ("usage_in_bytes", 450), ("stat", STATISTICS)):
        (old / f"memory.{name}").write_text(f"{value}\n")
    assert (host_memory.total(), host_memory.available()) == (500, 130)


def test_the_kernels_count_of_processes_ended_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 7\noom_kill 12\n")
    monkeypatch.setattr(host_memory, "VMSTAT", counters)
    assert host_memory.oom_kills() == 12
    counters.write_text("pgfault 7\n")
    assert host_memory.oom_kills() is None
    counters.unlink()
    assert host_memory.oom_kills() is None
    assert memory_watch.EVERY_S <= 1
