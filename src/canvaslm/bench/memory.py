"""What a process holds in memory, and since when it runs, as Linux tells it. None elsewhere."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

PROC = Path("/proc")
_STATUS = {
    "rss": "VmRSS",
    "peak_rss": "VmHWM",
    "anonymous": "RssAnon",
    "mapped": "RssFile",
    "swapped": "VmSwap",
}


@dataclass(frozen=True)
class Memory:
    """Bytes. `anonymous` is what belongs to no file; `peak_rss` is the most that was ever resident."""

    rss: int | None = None
    peak_rss: int | None = None
    anonymous: int | None = None
    mapped: int | None = None
    swapped: int | None = None
    huge_pages: int | None = None

    @classmethod
    def of(cls, process: int | str = "self", *, pages: bool = True, proc: Path = PROC) -> Memory:
        """Of a process by its id. Without `pages` the slower look at its pages is left out."""
        status = _kilobytes(proc / str(process) / "status")
        found = {name: status.get(field) for name, field in _STATUS.items()}
        rollup = _kilobytes(proc / str(process) / "smaps_rollup") if pages else {}
        if "Anonymous" in rollup:  # counted page by page; the status line lags behind
            found["anonymous"] = rollup["Anonymous"]
        return cls(**found, huge_pages=rollup.get("AnonHugePages"))

    def to_dict(self) -> dict[str, int | None]:
        return asdict(self)


def _kilobytes(path: Path) -> dict[str, int]:
    """The lines `Name:  123 kB`, in bytes; empty where the file cannot be read."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    return {name: int(count) * 1024 for name, count in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def running_seconds(process: int | str = "self", proc: Path = PROC) -> float | None:
    """How long a process has been running."""
    try:
        # The name in brackets may hold spaces; field 22 counts clock ticks from boot to the start.
        started = int((proc / str(process) / "stat").read_text().rpartition(")")[2].split()[19])
        uptime = float((proc / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return uptime - started / os.sysconf("SC_CLK_TCK")


__all__ = ["Memory", "running_seconds"]
