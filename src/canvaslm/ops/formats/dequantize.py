"""Blocks of each format -> fp32, one short function a format, vectorised over blocks.

Every function takes uint8 [n, block bytes] and returns fp32 [n, block values]. The order of
the floating-point operations is that of ggml's `dequantize_row_*` (`ggml-quants.c`), so
results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["DEQUANTISE", "dequantise_scale_min"]

# The 16 levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl` in ggml-common.h), denser around zero.
_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _half(block_bytes: Tensor) -> Tensor:
    """uint8 [n, 2k] -> fp32 [n, k], reading fp16. The copy makes any byte offset in a file aligned."""
    return block_bytes.clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _fields(packed: Tensor, bits: int) -> Tensor:
    """uint8 [n, g, w] -> [n, g, 8/bits, w]: bit field j of each byte, low bits first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-2) >> shifts.view(-1, 1)) & (2**bits - 1)


def _bits32(packed: Tensor) -> Tensor:
    """uint8 [n, 4] -> [n, 32]: one bit a value, low bits first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).reshape(len(packed), 32)


def _nibbles32(packed: Tensor) -> Tensor:
    """uint8 [n, 16] -> [n, 32]: all low nibbles, then all high ones."""
    return _fields(packed.unsqueeze(1), 4).reshape(len(packed), 32)


def _f32(b: Tensor) -> Tensor:
    return b.clone(memory_format=torch.contiguous_format).view(torch.float32)


def _bf16(b: Tensor) -> Tensor:
    return b.clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].view(torch.int8).float() * _half(b[:, :2])


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_nibbles32(b[:, 2:]).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _nibbles32(b[:, 4:]).float() + _half(b[:, 2:4])


def _q5_0(b: Tensor) -> Tensor:
    q = _nibbles32(b[:, 6:]) | (_bits32(b[:, 2:6]) << 4)
    return _half(b[:, :2]) * (q.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    q = _nibbles32(b[:, 8:]) | (_bits32(b[:, 4:8]) << 4)
    return _half(b[:, :2]) * q.float() + _half(b[:, 2:4])


def dequantise_scale_min(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 12 bytes of Q4_K and Q5_K -> eight 6-bit scales and eight 6-bit minima, uint8 [n, 8] each."""
    low_s, low_m, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([low_s & 63, (high & 15) | ((low_s >> 2) & 48)], dim=1)
    minima = torch.cat([low_m & 63, (high >> 4) | ((low_m >> 2) & 48)], dim=1)
    return scales, minima


def _affine(b: Tensor, q: Tensor) -> Tensor:
    """Q4_K and Q5_K share their first 16 bytes: d, dmin, scales. q [n, 8, 32] -> values [n, 256]."""
    scales, minima = dequantise_scale_min(b[:, 4:16])
    d = (_half(b[:, 0:2]) * scales.float()).unsqueeze(-1)
    m = (_half(b[:, 2:4]) * minima.float()).unsqueeze(-1)
    return (d * q.float() - m).view(len(b), 256)


def _q4_k(b: Tensor) -> Tensor:
    return _affine(b, _fields(b[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32))


def _q5_k(b: Tensor) -> Tensor:
    high = _fields(b[:, 16:48].reshape(-1, 1, 32), 1).reshape(-1, 8, 32)
    low = _fields(b[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _affine(b, low | (high << 4))


def _q6_k(b: Tensor) -> Tensor:
    low = _fields(b[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 256)
    high = _fields(b[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256)
    d = _half(b[:, 208:210]) * b[:, 192:208].view(torch.int8).float()
    q = (low | (high << 4)).float() - 32
    return (d.unsqueeze(-1) * q.view(-1, 16, 16)).view(-1, 256)


def _q2_k(b: Tensor) -> Tensor:
    q = _fields(b[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    d = (_half(b[:, 80:82]) * (b[:, :16] & 15).float()).unsqueeze(-1)
    m = (_half(b[:, 82:84]) * (b[:, :16] >> 4).float()).unsqueeze(-1)
    return (d * q.float() - m).view(-1, 256)


def _q3_k(b: Tensor) -> Tensor:
    # Sixteen 6-bit scales: four low bits in bytes 96..103, two high ones in 104..107.
    low = _fields(b[:, 96:104].unsqueeze(1), 4).reshape(-1, 16)
    high = _fields(b[:, 104:108].unsqueeze(1), 2).reshape(-1, 16)
    scales = (low | (high << 4)).float() - 32
    d = (_half(b[:, 108:110]) * scales).unsqueeze(-1)
    # The third bit is stored inverted: where it is 0, four is subtracted.
    absent = _fields(b[:, :32].reshape(-1, 1, 32), 1).reshape(-1, 16, 16) ^ 1
    q = _fields(b[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16).float() - (absent << 2).float()
    return (d * q).view(-1, 256)


def _iq4(nibbles: Tensor) -> Tensor:
    levels = torch.tensor(_IQ4_LEVELS, dtype=torch.float32, device=nibbles.device)
    return levels[nibbles.long()]


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _iq4(_nibbles32(b[:, 2:]))


def _iq4_xs(b: Tensor) -> Tensor:
    shifts = torch.tensor([0, 4], dtype=torch.uint8, device=b.device)
    low = ((b[:, 4:8].unsqueeze(-1) >> shifts) & 15).view(-1, 8)
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=b.device)
    high = ((b[:, 2:4].unsqueeze(-1) >> pairs) & 3).view(-1, 8)
    d = (_half(b[:, :2]) * ((low | (high << 4)).float() - 32)).unsqueeze(-1)
    q = _iq4(_fields(b[:, 8:].reshape(-1, 8, 16), 4).reshape(-1, 8, 32))
    return (d * q).view(-1, 256)


DEQUANTISE: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _f32,
    "F16": _half,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q6_K": _q6_k,
    "Q5_K": _q5_k,
    "Q5_1": _q5_1,
    "Q5_0": _q5_0,
    "Q4_K": _q4_k,
    "Q4_1": _q4_1,
    "Q4_0": _q4_0,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "Q3_K": _q3_k,
    "Q2_K": _q2_k,
}
