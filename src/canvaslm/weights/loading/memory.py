"""How much memory is free, on the host (within the container's limit) or on a GPU."""

from __future__ import annotations

import re
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_memory(device: str = "cpu") -> int | None:
    """Free bytes on "cpu" or "cuda[:N]"; None where the system does not tell (then nothing is refused).

    On the host: what Linux could hand out without swapping, and no more than what the cgroup has left.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    known = [size for size in (_host(), _cgroup()) if size is not None]
    return min(known, default=None)


def gigabytes(size: int) -> str:
    """Bytes for people: "51.6 GB", "4.4 MB" (powers of ten, as disks and checkpoints are sold)."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def _host() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _cgroup() -> int | None:
    """The tightest limit on the way up from our own cgroup, less what is used there and cannot be dropped."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return None
    left = [_left(*entry) for line in lines for entry in _levels(line)]
    return min((size for size in left if size is not None), default=None)


def _levels(line: str) -> list[tuple[Path, str, str, str]]:
    """(folder, limit file, usage file, droppable key) of each ancestor, for one line of /proc/self/cgroup."""
    number, controllers, path = [*line.split(":", 2), "", ""][:3]
    if number == "0" and not controllers:
        root, files = _CGROUP, ("memory.max", "memory.current", "inactive_file")
    elif "memory" in controllers.split(","):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        root, files = _CGROUP / "memory", names
    else:
        return []
    own = root / path.lstrip("/")
    return [(folder, *files) for folder in (own, *own.parents) if folder == root or root in folder.parents]


def _left(folder: Path, limit_name: str, usage_name: str, droppable: str) -> int | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        if limit == "max" or int(limit) >= 2**60:
            return None
        used = int((folder / usage_name).read_text())
        found = re.search(rf"^{droppable} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used + (int(found[1]) if found else 0))


__all__ = ["available_memory", "gigabytes"]
