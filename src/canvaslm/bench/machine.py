"""What the machine is, and how fast it multiplies and reads, measured with a few probes.

A probe is what this process reaches with the best kernel at hand, not a data sheet's number: the share of
a ceiling says how far a part is from the easiest product on the same machine in the same minute.
Neighbours on a shared machine change that by the minute, so products are probed before and after a
measurement and both are reported.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..ops import cpu
from ..ops.cpu import products
from ..ops.cpu.repacked import RepackedMatrix
from .host import describe_host
from .parts import clock_of, native_library

_PRODUCT = (256, 2048, 2048)  # rows, inputs, outputs: a canvas times a matrix that stays in cache
_PROBE_SECONDS = 0.15
_CEILING_ROUNDS = 20_000  # some milliseconds
READ_BYTES = 512 << 20  # more than any cache holds


@dataclass(frozen=True)
class Ceilings:
    """What shares are taken of: 10^9 multiply-accumulates and bytes a second. `kind` names the probe."""

    kind: str
    gmac_per_second: float
    gb_per_second: float | None


@dataclass(frozen=True)
class Products:
    """10^9 multiply-accumulates a second of one round of probes, by kind; None where the
    machine has no such kernel."""

    float32: float
    bfloat16: float | None
    int8: float | None

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)

    def best(self, kind: str) -> float:
        return getattr(self, kind, None) or self.float32


def probe_products(device: torch.device | str = "cpu", seconds: float = _PROBE_SECONDS) -> Products:
    """Times a product of each kind; the best of some repeats in about `seconds` each."""
    device = torch.device(device)
    rows, inputs, outputs = _PRODUCT
    x, w = torch.randn(rows, inputs, device=device), torch.randn(inputs, outputs, device=device)
    halves = x.bfloat16(), w.bfloat16()
    now, macs = clock_of(device), rows * inputs * outputs
    whole = _best(lambda: torch.mm(x, w), now, seconds)
    half = _best(lambda: torch.mm(*halves), now, seconds)
    return Products(macs / whole / 1e9, macs / half / 1e9, _int8(device, now, seconds))


def _int8(device: torch.device, now: Callable[[], float], seconds: float) -> float | None:
    """The best of torch's product, the native one, and the native kernels' instructions
    in the first-level cache."""
    rows, inputs, outputs = _PRODUCT
    macs = rows * inputs * outputs
    rates = []
    a = torch.randint(-127, 127, (rows, inputs), dtype=torch.int8, device=device)
    b = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8, device=device).t()
    with suppress(RuntimeError):  # not every device has it
        rates.append(macs / _best(lambda: torch._int_mm(a, b), now, seconds))
    library = native_library() if device.type == "cpu" else None
    if library is not None:
        packed, x = RepackedMatrix.from_float(torch.randn(outputs, inputs), "INT8"), torch.randn(rows, inputs)
        out = torch.empty(rows, outputs)
        rates.append(macs / _best(lambda: products.matmul(packed, x, out), now, seconds))
        done = library.canvas_ceiling(_CEILING_ROUNDS)
        rates.append(done / _best(lambda: library.canvas_ceiling(_CEILING_ROUNDS), now, seconds))
    return max(rates) / 1e9 if rates else None


def probe_reading(device: torch.device | str = "cpu", size: int = READ_BYTES, repeats: int = 4) -> float:
    """10^9 bytes a second, reading `size` bytes of memory once; the best of some repeats."""
    device = torch.device(device)
    with _floats(size // 4, device) as values:
        values.fill_(1.0)
        now, times = clock_of(device), []
        for _ in range(repeats):
            begin = now()
            values.sum()
            times.append(now() - begin)
    return size / min(times) / 1e9


@contextmanager
def _floats(count: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Uninitialised fp32 memory: of the kernels' own kind (huge pages, where there are
    any) if they are loaded."""
    library = native_library() if device.type == "cpu" else None
    address = library.canvas_alloc(4 * count) if library is not None else None
    if library is None or not address:
        yield torch.empty(count, device=device)
        return
    try:
        yield torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32)
    finally:
        library.canvas_free(address, 4 * count)


def _best(work: Callable[[], Any], now: Callable[[], float], seconds: float) -> float:
    work()
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < 200):
        begin = now()
        work()
        times.append(now() - begin)
    return min(times)


@dataclass
class Probes:
    """Products before and after a measurement, and reading after it (its buffer is no part of the peak)."""

    device: torch.device | str = "cpu"
    seconds: float = _PROBE_SECONDS
    read_bytes: int = READ_BYTES
    before: Products | None = None
    after: Products | None = None
    reading: float | None = None

    def start(self) -> None:
        self.before = probe_products(self.device, self.seconds)

    def finish(self) -> None:
        self.after = probe_products(self.device, self.seconds)
        self.reading = probe_reading(self.device, self.read_bytes)

    def ceilings(self, kind: str) -> Ceilings:
        """The better of both rounds, of kind "float32", "bfloat16" or "int8" (float32
        where there is no such)."""
        assert self.before is not None and self.after is not None
        found = [getattr(round, kind) for round in (self.before, self.after)]
        if None in found:
            kind = "float32"
        return Ceilings(kind, max(self.before.best(kind), self.after.best(kind)), self.reading)

    def to_dict(self) -> dict[str, Any]:
        assert self.before is not None and self.after is not None
        return {
            "gmac_per_second": {"before": self.before.to_dict(), "after": self.after.to_dict()},
            "gb_per_second": self.reading,
        }


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The host, threads and versions, as plain data. The kernels' names only where they are loaded."""
    loaded = native_library() is not None
    cuda = torch.device(device).type == "cuda"
    return {
        **describe_host(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "native": cpu.isa() if loaded else None,
        "native_threads": cpu.threads() if loaded else None,
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
    }


__all__ = [
    "READ_BYTES",
    "Ceilings",
    "Probes",
    "Products",
    "describe_machine",
    "probe_products",
    "probe_reading",
]
