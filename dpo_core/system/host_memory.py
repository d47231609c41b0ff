"""Host memory as this process may use it: what is free, within control groups too, and whom the kernel ended for it."""

from pathlib import Path

import psutil

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
VMSTAT, BOOT = Path("/proc/vmstat"), Path("/proc/sys/kernel/random/boot_id")
# Limit, use, and the lines of memory.stat with what the kernel can take back of it (the page cache, and of its own
# structures): of the two versions, the first of which does not tell of the structures.
VERSIONS = {
    2: ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def available() -> int:
    """Bytes that this process can still take without swapping: the machine's, or less in a control group."""
    free = [limit - used for limit, used in groups()]
    return max(0, min([int(psutil.virtual_memory().available), *free]))


def total() -> int:
    """Bytes of memory that there are for this process: the machine's, or its control groups' limit."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in groups())])


def swapped() -> int:
    """Bytes of the machine's memory that are swapped out."""
    return int(psutil.swap_memory().used)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def groups() -> list[tuple[int, int]]:
    """Limit and use in bytes of the control groups that this process is in, those without a limit left out."""
    found = [of_group(folder, version) for version, folder in folders()]
    return [pair for pair in found if pair is not None]


def folders() -> list[tuple[int, Path]]:
    """The control groups for memory of this process and those above them, each with its version."""
    if not MEMBERSHIP.is_file():
        return []
    found: list[tuple[int, Path]] = []
    for line in MEMBERSHIP.read_text().splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, root = (1, CGROUPS / "memory") if controllers else (2, CGROUPS)
        own = root / inside.strip("/")
        found += [(version, folder) for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return found


def of_group(folder: Path, version: int) -> tuple[int, int] | None:
    """Limit and use of one control group, what the kernel can take back not counted; None without a limit."""
    limit, used, reclaimable = VERSIONS[version]
    try:
        bound = (folder / limit).read_text().strip()
        if bound == "max":
            return None
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        held = int((folder / used).read_text()) - sum(int(statistics.get(line, 0)) for line in reclaimable)
        return int(bound), max(0, held)
    except (OSError, ValueError):
        return None


def oom_kills() -> int | None:
    """How many processes the kernel has ended for want of memory since it started, None where it does not say."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def boot() -> str:
    """What tells one start of this machine from another; empty where it does not say."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""
