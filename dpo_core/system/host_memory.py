"""Host memory: available and total bytes, within control groups too, and the kernel's count of out-of-memory kills."""

from pathlib import Path

import psutil

CGROUP_ROOT, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
VMSTAT, BOOT = Path("/proc/vmstat"), Path("/proc/sys/kernel/random/boot_id")
# By control group version: the files with limit and use, and the lines of memory.stat with memory that the kernel can
# reclaim (page cache and, in version 2 only, kernel structures).
VERSIONS = {
    2: ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def available() -> int:
    """Bytes that this process can still allocate without swapping, within its control groups."""
    free = [limit - used for limit, used in cgroup_limits()]
    return max(0, min([int(psutil.virtual_memory().available), *free]))


def total() -> int:
    """Bytes of the machine's memory, or of its control groups' lowest limit if that is less."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in cgroup_limits())])


def swapped() -> int:
    """Bytes of the machine's memory that are swapped out."""
    return int(psutil.swap_memory().used)


def resident() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def cgroup_limits() -> list[tuple[int, int]]:
    """Limit and use in bytes of each of this process's control groups that has a limit."""
    limits = [limit_and_use(directory, version) for version, directory in cgroup_directories()]
    return [limit for limit in limits if limit is not None]


def cgroup_directories() -> list[tuple[int, Path]]:
    """Version and directory of this process's memory control groups and of all groups above them."""
    if not MEMBERSHIP.is_file():
        return []
    directories: list[tuple[int, Path]] = []
    for line in MEMBERSHIP.read_text().splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, root = (1, CGROUP_ROOT / "memory") if controllers else (2, CGROUP_ROOT)
        own = root / inside.strip("/")
        directories += [(version, parent) for parent in (own, *own.parents) if parent.is_relative_to(root)]
    return directories


def limit_and_use(directory: Path, version: int) -> tuple[int, int] | None:
    """Limit and use of one control group in bytes, without reclaimable memory; None without a limit."""
    limit, used, reclaimable = VERSIONS[version]
    try:
        bound = (directory / limit).read_text().strip()
        if bound == "max":
            return None
        statistics = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        in_use = int((directory / used).read_text()) - sum(int(statistics.get(line, 0)) for line in reclaimable)
        return int(bound), max(0, in_use)
    except (OSError, ValueError):
        return None


def oom_kills() -> int | None:
    """Number of processes that the kernel killed for lack of memory since boot, None where it does not report it."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def boot_id() -> str:
    """The kernel's identifier of this boot; empty where it has none."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""
