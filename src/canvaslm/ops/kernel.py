"""What a backend says of itself: the kernels it has, for which operations, formats and device. See
`backend` for the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

# What is looked up. `make` of a kernel gives for each:
#   linear     (name, weight [N, K], repacker) -> a module like `quantised.QuantLinear`
#   gated_mlp (name, gate, up, down, repacker) -> a module x -> down(gelu(gate x) * up x); no plain entry:
#   three linears experts (name, (gate_up,) or (gate, up), down, repacker) -> a module like
#   `quantised.QuantExperts` predict (name, table [V, H], repacker) -> a vocabulary like
#   `quantised.QuantVocabulary`, which embeds and predicts attention () -> the name of the store
#   (cache/stores.py) whose keys and values this attention reads where they lie
Operation = Literal["linear", "gated_mlp", "experts", "predict", "attention"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


def _fits_all(*weights: Any) -> bool:
    return True


def _as_stored(format: str) -> str:
    return ""


@dataclass(frozen=True)
class Kernel:
    """One entry: how `backend` does an operation on weights of these formats (None: of every format).

    name: a `Repacker` knows the weight by it; a kernel that reads weights as they are ignores name and
    repacker. fits: whether it takes just these weights (their shapes, formats side by side). repacks:
    whether it copies the weights, so that the file's pages may be given back. label: what it makes of a
    format, for `show --kernels`.
    """

    backend: str
    operation: Operation
    make: Callable[..., Any]
    formats: frozenset[str] | None = None
    fits: Callable[..., bool] = _fits_all
    repacks: bool = False
    label: Callable[[str], str] = _as_stored


@dataclass(frozen=True)
class Backend:
    """A family of kernels. `device` is torch's type of device ("cpu", "cuda"), None for every one.

    available: whether it can run here; it may compile something, so it is asked only when a kernel would be
    used. summary: what it is, as "native kernels (avx512, 8 threads)"; asked only when it is available.
    """

    name: str
    device: str | None
    kernels: tuple[Kernel, ...]
    available: Callable[[], bool]
    summary: Callable[[], str]


__all__ = ["OPERATIONS", "Backend", "Kernel", "Operation"]
