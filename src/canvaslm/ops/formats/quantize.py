"""fp32 -> blocks of each format that canvaslm writes, vectorised over blocks.

Every function takes fp32 [n, block values] and returns uint8 [n, block bytes]. Q8_0, Q5_1, Q5_0 and Q4_0
follow ggml's reference quantisers operation by operation and give the same bytes.

The K-quants search: for each group of values a grid of step sizes around (range / levels) is tried, each
followed by the weighted least-squares scale (and offset) for the levels it chose, and the best is kept; the
group scales are then themselves rounded to 6 (Q4_K, Q5_K) or 8 bits (Q6_K), and the levels chosen anew for
the rounded scales. Larger values weigh more, since they meet the larger products. The idea is that of
`make_qkx2_quants` and `make_qx_quants` in ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["QUANTISE"]

# Step sizes tried, as levels added to the number of levels that spans the range: more than zero clips
# nothing and wastes range, less than zero clips the extremes for a finer step. A grid of 20 gains
# another 0.5 % of the error.
_AFFINE_GRID = _SIGNED_GRID = (-2.4, -2.0, -1.6, -1.2, -0.8, -0.4, 0.0, 0.4)


def _bytes(x: Tensor) -> Tensor:
    """Any dtype [n, k] -> its bytes, uint8 [n, k * itemsize]."""
    return x.contiguous().view(torch.uint8).view(len(x), -1)


def _reciprocal(d: Tensor) -> Tensor:
    return torch.where(d == 0, torch.zeros_like(d), 1 / d)


def _f16(x: Tensor) -> Tensor:
    return _bytes(x.half())


def _q8_0(x: Tensor) -> Tensor:
    d = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _reciprocal(d)
    size = scaled.abs()
    whole = size.floor()
    q = scaled.sign() * (whole + (2 * (size - whole)).floor())  # halves away from zero, as C's roundf
    return torch.cat([_bytes(d.half()), _bytes(q.to(torch.int8))], dim=1)


def _extreme(x: Tensor) -> Tensor:
    """The value of largest magnitude, with its sign: [n, k] -> [n, 1]."""
    return x.gather(1, x.abs().argmax(1, keepdim=True))


def _levels(x: Tensor, inverse: Tensor, shift: float, top: int) -> Tensor:
    """Truncation, not rounding: `shift` holds the half."""
    return (x * inverse + shift).trunc().clamp(0, top).to(torch.uint8)


def _join_nibbles(q: Tensor) -> Tensor:
    """uint8 [n, 32] -> [n, 16]: first half in the low nibbles, second half in the high ones."""
    return (q[:, :16] & 15) | (q[:, 16:] << 4)


def _join_bits(q: Tensor) -> Tensor:
    """Bit 4 of each of 32 values -> 4 bytes, low bits first."""
    place = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=q.device)
    return (((q >> 4) & 1).view(-1, 4, 8) * place).sum(-1).to(torch.uint8)


def _q4_0(x: Tensor) -> Tensor:
    d = _extreme(x) / -8
    q = _levels(x, _reciprocal(d), 8.5, 15)
    return torch.cat([_bytes(d.half()), _join_nibbles(q)], dim=1)


def _q5_0(x: Tensor) -> Tensor:
    d = _extreme(x) / -16
    q = _levels(x, _reciprocal(d), 16.5, 31)
    return torch.cat([_bytes(d.half()), _join_bits(q), _join_nibbles(q)], dim=1)


def _q5_1(x: Tensor) -> Tensor:
    low = x.amin(1, keepdim=True)
    d = (x.amax(1, keepdim=True) - low) / 31
    q = _levels(x - low, _reciprocal(d), 0.5, 31)
    return torch.cat([_bytes(d.half()), _bytes(low.half()), _join_bits(q), _join_nibbles(q)], dim=1)


def _fit_affine(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale s >= 0 and offset m >= 0 with x ~ s * q - m for q in 0..top: x [n, g, k] -> two of [n, g].

    The weighted squared error of a candidate follows from five sums, so it needs no
    pass over the differences.
    """
    w = x.abs() + x.square().mean(-1, keepdim=True).sqrt()
    wx = w * x
    sum_w, sum_wx = w.sum(-1), wx.sum(-1)
    low = x.amin(-1, keepdim=True).clamp(max=0)
    span = (x.amax(-1, keepdim=True) - low).clamp(min=0)
    best = torch.full_like(sum_w, torch.inf)
    scale, offset = span.squeeze(-1) / top, low.squeeze(-1)
    for extra in _AFFINE_GRID:
        q = ((x - low) * ((top + extra) * _reciprocal(span))).round_().clamp_(0, top)
        wq = w * q
        sum_wq, sum_wxq, sum_wqq = wq.sum(-1), (wx * q).sum(-1), wq.mul_(q).sum(-1)
        s, m = _least_squares(sum_w, sum_wx, sum_wq, sum_wxq, sum_wqq)
        error = s * (s * sum_wqq - 2 * sum_wxq) + m * (m * sum_w - 2 * sum_wx) + 2 * s * m * sum_wq
        better = (error < best) & (s > 0)
        best = torch.where(better, error, best)
        scale, offset = torch.where(better, s, scale), torch.where(better, m, offset)
    return scale, -offset


def _least_squares(w: Tensor, wx: Tensor, wq: Tensor, wxq: Tensor, wqq: Tensor) -> tuple[Tensor, Tensor]:
    """Scale s and offset m <= 0 that minimise sum w (s q + m - x)^2, from the weighted sums."""
    determinant = w * wqq - wq.square()
    inverse = _reciprocal(determinant)
    s, m = (w * wxq - wx * wq) * inverse, (wqq * wx - wq * wxq) * inverse
    through_zero = wxq * _reciprocal(wqq)
    positive = m > 0
    return torch.where(positive, through_zero, s), torch.where(positive, torch.zeros_like(m), m)


def _six_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Non-negative [n, 8] -> fp16 unit [n, 1] and 6-bit multiples of it, uint8 [n, 8]."""
    unit = (x.amax(1, keepdim=True) / 63).half()
    return unit, (x * _reciprocal(unit.float())).round().clamp(0, 63).to(torch.uint8)


def _join_scale_min(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight 6-bit scales and minima -> 12 bytes: the inverse of `dequantize.dequantise_scale_min`."""
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    third = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return torch.cat([first, second, third], dim=1)


def _affine(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The 16 leading bytes and the levels [n, 8, 32] of a Q4_K (top 15) or Q5_K (top 31) block."""
    groups = x.view(-1, 8, 32)
    scale, offset = _fit_affine(groups, top)
    unit, scales = _six_bits(scale)
    unit_min, minima = _six_bits(offset)
    s = (unit.float() * scales.float()).unsqueeze(-1)
    m = (unit_min.float() * minima.float()).unsqueeze(-1)
    q = ((groups + m) * _reciprocal(s)).round().clamp(0, top).to(torch.uint8)
    return torch.cat([_bytes(unit), _bytes(unit_min), _join_scale_min(scales, minima)], dim=1), q


def _group_nibbles(q: Tensor) -> Tensor:
    """Low nibbles of [n, 8, 32]: groups 2j and 2j+1 share 32 bytes -> [n, 128]."""
    pairs = (q & 15).view(-1, 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).view(-1, 128)


def _q4_k(x: Tensor) -> Tensor:
    head, q = _affine(x, 15)
    return torch.cat([head, _group_nibbles(q)], dim=1)


def _q5_k(x: Tensor) -> Tensor:
    head, q = _affine(x, 31)
    place = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=q.device).view(8, 1)
    high = ((q >> 4) * place).sum(1).to(torch.uint8)
    return torch.cat([head, high, _group_nibbles(q)], dim=1)


def _fit_signed(x: Tensor, bottom: int) -> Tensor:
    """Scale s of either sign with x ~ s * q for q in bottom..-bottom-1: x [n, g, k] -> [n, g].

    The value of largest magnitude is put on the side that has one level more.
    """
    w = x.square()
    wx = w * x
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    inverse = _reciprocal(extreme)
    best = torch.full(x.shape[:-1], -1.0, device=x.device)
    scale = extreme.squeeze(-1) / bottom
    for extra in _SIGNED_GRID:
        q = (x * ((bottom - extra) * inverse)).round_().clamp_(bottom, -bottom - 1)
        sum_wxq, sum_wqq = (wx * q).sum(-1), (w * q).mul_(q).sum(-1)
        s = sum_wxq * _reciprocal(sum_wqq)
        gain = sum_wxq * s  # how much this candidate takes off the weighted squared sum
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, s, scale)
    return scale


def _q6_k(x: Tensor) -> Tensor:
    groups = x.view(-1, 16, 16)
    scale = _fit_signed(groups, -32)
    unit = (_extreme(scale) / -128).half()
    scales = (scale * _reciprocal(unit.float())).round().clamp(-128, 127)
    s = (unit.float() * scales).unsqueeze(-1)
    q = ((groups * _reciprocal(s)).round().clamp(-32, 31) + 32).to(torch.uint8).view(-1, 2, 4, 32)
    low, high = q & 15, q >> 4
    nibbles = torch.cat([low[:, :, 0] | (low[:, :, 2] << 4), low[:, :, 1] | (low[:, :, 3] << 4)], dim=-1)
    pairs = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return torch.cat(
        [nibbles.view(-1, 128), pairs.view(-1, 64), _bytes(scales.to(torch.int8)), _bytes(unit)], dim=1
    )


QUANTISE: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _bytes,
    "F16": _f16,
    "BF16": lambda x: _bytes(x.bfloat16()),
    "Q8_0": _q8_0,
    "Q6_K": _q6_k,
    "Q5_K": _q5_k,
    "Q5_1": _q5_1,
    "Q5_0": _q5_0,
    "Q4_K": _q4_k,
    "Q4_0": _q4_0,
}
