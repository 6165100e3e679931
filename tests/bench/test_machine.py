from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from canvaslm.bench.host import describe_host, processor
from canvaslm.bench.machine import (
    Ceilings,
    Probes,
    Products,
    describe_machine,
    probe_products,
    probe_reading,
)
from canvaslm.bench.memory import Memory, running_seconds

from ..waiting import HUNG

STATUS = (
    "Name:\tx\nVmPeak:\t  900 kB\nVmHWM:\t 700 kB\nVmRSS:\t 600 kB\nRssAnon:\t 500 kB\nRssFile:\t 90 "
    "kB\nVmSwap:\t 0 kB\n"
)
ROLLUP = "55-7f ---p 0 00:00 0 [rollup]\nRss: 600 kB\nAnonymous: 512 kB\nAnonHugePages: 256 kB\n"


def fake_proc(root: Path, **files: str) -> Path:
    (root / "7").mkdir()
    for name, text in files.items():
        (root / "7" / name).write_text(text)
    (root / "uptime").write_text("1000.50 3000.00\n")
    return root


def test_memory_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, status=STATUS, smaps_rollup=ROLLUP)
    found = Memory.of(7, proc=proc)
    assert found == Memory(600 << 10, 700 << 10, 512 << 10, 90 << 10, 0, 256 << 10)
    assert Memory.of(7, pages=False, proc=proc).anonymous == 500 << 10
    assert Memory.of(8, proc=proc) == Memory()


def test_the_start_of_a_process_is_found_behind_any_name(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fields = ["S", *["0"] * 18, str(100 * ticks), "1", "2"]
    proc = fake_proc(tmp_path, stat=f"7 (a) b (c) {' '.join(fields)}\n")
    assert running_seconds(7, proc) == pytest.approx(900.5)
    assert running_seconds(8, proc) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_this_machine_tells_of_a_real_process() -> None:
    before = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        age, memory = running_seconds(child.pid), Memory.of(child.pid, pages=False)
        assert age is not None
        assert 0 <= age <= time.perf_counter() - before + 0.05
        assert memory.peak_rss is not None
        assert memory.peak_rss >= (memory.rss or 0) > 0
    finally:
        child.communicate(b"\n", timeout=HUNG)


def test_probes_find_rates_and_the_better_round_is_the_ceiling() -> None:
    products = probe_products(seconds=0.001)
    assert products.float32 > 0
    assert probe_reading(size=1 << 20, repeats=1) > 0
    probes = Probes()
    probes.before, probes.after = Products(10.0, 4.0, None), Products(8.0, 5.0, None)
    probes.reading = 3.0
    assert probes.ceilings("bfloat16") == Ceilings("bfloat16", 5.0, 3.0)
    assert probes.ceilings("int8") == Ceilings("float32", 10.0, 3.0)
    assert probes.to_dict()["gmac_per_second"]["before"]["float32"] == 10.0


def test_reading_a_buffer_of_the_kernels_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory from the library is used while it is there, and given back."""
    from canvaslm.bench import machine

    held: list[torch.Tensor] = []

    class Library:
        def canvas_alloc(self, size: int) -> int:
            held.append(torch.empty(size, dtype=torch.uint8))
            return held[-1].data_ptr()

        def canvas_free(self, address: int, size: int) -> None:
            assert (address, size) == (held[0].data_ptr(), held[0].numel())
            held.append(held[0])

    monkeypatch.setattr(machine, "native_library", Library)
    assert probe_reading(size=1 << 16, repeats=1) > 0
    assert held[0].view(torch.float32).eq(1).all()
    assert len(held) == 2


def test_the_machine_is_described(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n")
    assert processor(info) == "Some CPU @ 2 GHz"
    found = describe_machine()
    assert set(describe_host()) < set(found)
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["device"] == "cpu"
