"""Counter-based randomness: every number is a pure function of (seed, canvas, step, purpose, place, index).

Nothing is drawn from a generator, so a request gives the same tokens alone, in a batch, or arriving late. The
mixing function is SplitMix64's finaliser (Steele, Lea, Flood 2014), chained once per key. Computed in int64
tensors, whose products wrap as unsigned ones do.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15

# What a number is for; a key of its own keeps the streams apart.
START = 0  # the uniform tokens a canvas begins as
TILE = 1  # Gumbel noise per tile of the vocabulary
WITHIN = 2  # the uniform draw within the winning tile
RENOISE = 3  # the uniform tokens that replace what was not accepted
ANCESTRAL = 4  # the coin of the ancestral sampler
DRAFT = 5  # whether a place of a draft is noised
NUCLEUS = 6  # the draw among the likeliest tokens of a place


def _signed(value: int) -> int:
    """A 64-bit pattern as the Python int that int64 holds."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: int64's own shift drags the sign along."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def stream(seed: int, canvas: int, step: int, purpose: int) -> int:
    """The 64-bit key of one purpose at one step of one canvas."""
    key = _mix_int((seed + _GOLDEN) & _MASK)
    for part in (canvas, step, purpose):
        key = _mix_int((key ^ part) + _GOLDEN & _MASK)
    return key


def canvas_key(seed: int, canvas: int) -> int:
    """What `stream` and `streams` begin with, as the int that int64 holds: the same
    at every step of a canvas."""
    key = _mix_int((seed + _GOLDEN) & _MASK)
    return _signed(_mix_int((key ^ canvas) + _GOLDEN & _MASK))


def streams(canvas_keys: Tensor, steps: Tensor, *purposes: int) -> Tensor:
    """The keys [P, R] of P purposes for R canvases, each at its own step: as `stream`, where the tensors are.

    canvas_keys: int64 [R], of `canvas_key`. steps: int64 [R].
    """
    golden = _signed(_GOLDEN)
    at_step = _mix((canvas_keys ^ steps) + golden)
    return torch.stack([_mix((at_step ^ purpose) + golden) for purpose in purposes])


def bits(keys: Tensor | int, count: int, device: torch.device | str | None = None) -> Tensor:
    """Random 64-bit patterns as int64 [..., count]: one per index, for each key of an int64 tensor [...]."""
    if isinstance(keys, int):
        keys = torch.tensor(_signed(keys), device=device)
    index = torch.arange(1, count + 1, device=keys.device) * _signed(_GOLDEN)
    return _mix(keys[..., None] + index)


def uniforms(keys: Tensor | int, count: int, device: torch.device | str | None = None) -> Tensor:
    """Float64 uniforms in [0, 1) with 53 bits, shaped as `bits`."""
    return _shift(bits(keys, count, device), 11).double() * 2.0**-53


def tokens(
    keys: Tensor | int, count: int, vocab_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Token ids shaped as `bits`, uniform over the whole vocabulary (bias below vocab_size / 2^32)."""
    return (_shift(bits(keys, count, device), 32) * vocab_size) >> 32


def gumbels(keys: Tensor | int, count: int, device: torch.device | str | None = None) -> Tensor:
    """Standard Gumbel numbers in fp32, shaped as `bits`."""
    u = uniforms(keys, count, device).clamp_(min=2.0**-54)
    return -torch.log(-torch.log(u)).float()


__all__ = [
    "ANCESTRAL",
    "DRAFT",
    "NUCLEUS",
    "RENOISE",
    "START",
    "TILE",
    "WITHIN",
    "bits",
    "canvas_key",
    "gumbels",
    "stream",
    "streams",
    "tokens",
    "uniforms",
]
