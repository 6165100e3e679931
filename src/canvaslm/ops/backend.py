"""The table (operation, format, device) -> kernel: looked up while a model loads, never while it runs.

A backend is a folder of kernels and a `Backend` that lists them; one more is one more line in `BACKENDS`.
Backends are asked in that order, plain PyTorch last, which has everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from . import plain
from .cpu import backend as cpu
from .formats.quant_tensor import FORMATS, QuantTensor
from .kernel import OPERATIONS, Backend, Kernel, Operation

BACKENDS: list[Backend] = [cpu.BACKEND, plain.BACKEND]

# One weight, or several that are taken together (gate and up of all experts).
Weights = QuantTensor | tuple[QuantTensor, ...]


def find(operation: Operation, device: torch.device | str, *weights: Weights) -> Kernel | None:
    """The first backend's kernel that takes these weights; None where only plain modules
    do it (see `Operation`)."""
    formats = {
        part.format for weight in weights for part in (weight if isinstance(weight, tuple) else (weight,))
    }
    for kernel in _kernels(operation, device, formats):
        if kernel.fits(*weights):
            return kernel
    return None


def choose(operation: Operation, device: torch.device | str, *weights: Weights) -> Kernel:
    """As `find`, for the operations that plain PyTorch has an entry for."""
    kernel = find(operation, device, *weights)
    assert kernel is not None, f"plain PyTorch has no {operation}"
    return kernel


def for_format(operation: Operation, device: torch.device | str, format: str) -> Kernel | None:
    """The kernel for weights of one format whose shapes suit it."""
    return next(_kernels(operation, device, {format}), None)


def _kernels(operation: Operation, device: torch.device | str, formats: set[str]) -> Iterator[Kernel]:
    kind = torch.device(device).type
    for backend in BACKENDS:
        if backend.device not in (None, kind):
            continue
        for kernel in backend.kernels:
            suits = kernel.formats is None or formats <= kernel.formats
            # Asked last: what is not wanted need not be compiled.
            if kernel.operation == operation and suits and backend.available():
                yield kernel


def backend_of(device: torch.device | str, formats: Iterable[str]) -> Backend:
    """The first backend in the table's order that multiplies with any of these formats on a device."""
    names = {kernel.backend for format in formats if (kernel := for_format("linear", device, format))}
    return next(backend for backend in BACKENDS if backend.name in names)


def repacks(device: torch.device | str, formats: Iterable[str]) -> bool:
    """Whether any of these formats is repacked for the kernels of a device."""
    kernels = (for_format("linear", device, format) for format in formats)
    return any(kernel is not None and kernel.repacks for kernel in kernels)


@contextmanager
def registered(backend: Backend) -> Iterator[None]:
    """Has a backend asked before all others, for a while: for tests and experiments."""
    BACKENDS.insert(0, backend)
    try:
        yield
    finally:
        BACKENDS.remove(backend)


@contextmanager
def only(backend: Backend) -> Iterator[None]:
    """Has no other backend asked, for a while: plain PyTorch's modules are differentiable."""
    before = list(BACKENDS)
    BACKENDS[:] = [backend]
    try:
        yield
    finally:
        BACKENDS[:] = before


_differentiable = False


@contextmanager
def differentiable() -> Iterator[None]:
    """Models that are loaded meanwhile let gradients flow through: no layers are fused that are for inference
    only."""
    global _differentiable
    before, _differentiable = _differentiable, True
    try:
        yield
    finally:
        _differentiable = before


def may_fuse() -> bool:
    """Whether layers may be fused that no gradient flows through."""
    return not _differentiable


def quantised_formats() -> tuple[str, ...]:
    """Formats whose values share blocks: those that the table is for."""
    return tuple(name for name, format in FORMATS.items() if format.block > 1)


def kernel_table(device: torch.device | str) -> dict[str, dict[Operation, Kernel | None]]:
    """Quantised format -> operation -> the kernel that weights of it get on this machine."""
    return {
        format: {operation: for_format(operation, device, format) for operation in OPERATIONS}
        for format in quantised_formats()
    }


__all__ = [
    "BACKENDS",
    "Weights",
    "backend_of",
    "choose",
    "differentiable",
    "find",
    "for_format",
    "kernel_table",
    "may_fuse",
    "only",
    "quantised_formats",
    "registered",
    "repacks",
]
