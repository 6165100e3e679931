"""Free memory: the host's, and the tightest cgroup's on the way up."""

from __future__ import annotations

from pathlib import Path

import pytest

from canvaslm.weights.loading import memory
from canvaslm.weights.loading.memory import available_memory, gigabytes


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up /proc and /sys with 1 GiB available."""
    (tmp_path / "meminfo").write_text("MemTotal: 4194304 kB\nMemAvailable:  1048576 kB\n")
    (tmp_path / "own").write_text("")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    return tmp_path


def group(folder: Path, limit: str, used: int, cached: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\nother 7\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_the_host_alone(machine: Path) -> None:
    assert available_memory() == 2**30


def test_the_tightest_level_of_cgroup_2(machine: Path) -> None:
    (machine / "own").write_text("0::/outer/inner\n")
    group(machine / "cgroup" / "outer", "300000", 250_000, 30_000, V2)
    group(machine / "cgroup" / "outer" / "inner", "max", 10, 0, V2)
    assert available_memory() == 80_000


def test_cgroup_1(machine: Path) -> None:
    (machine / "own").write_text("4:cpu:/a\n3:memory:/a\n0::/\n")
    group(machine / "cgroup" / "memory" / "a", "1000", 5000, 0, V1)
    assert available_memory() == 0


def test_no_limit_above_the_host(machine: Path) -> None:
    (machine / "own").write_text("3:memory:/\n0::/\n")
    group(machine / "cgroup" / "memory", str(2**63 - 4096), 5, 0, V1)
    assert available_memory() == 2**30


def test_unknown_where_the_system_does_not_tell(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert available_memory() is None


def test_this_machine() -> None:
    free = available_memory()
    assert free is None or 0 <= free < 2**50


@pytest.mark.parametrize(
    ("size", "text"), [(51_600_000_000, "51.6 GB"), (4_400_000, "4.4 MB"), (1500, "1.5 kB"), (12, "12 B")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert gigabytes(size) == text
