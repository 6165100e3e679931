"""The quantised layouts of GGUF files: what a block looks like, and the way to and from fp32.

A tensor of any format is rows of blocks: `block` consecutive values of a row share `size` bytes. `dequantise`
and `quantise` are the plain-torch twins every faster kernel is tested against; they run on any device, in
slices that keep their temporaries near 100 MB whatever the tensor's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .dequantize import DEQUANTISE
from .quantize import QUANTISE
from .table import FORMATS, GGML_TYPE_NAMES, Format, format_by_id

__all__ = [
    "FORMATS",
    "GGML_TYPE_NAMES",
    "Format",
    "QuantTensor",
    "dequantise",
    "format_by_id",
    "quantise",
]

# Values unpacked or packed at a time: packing holds about twenty temporaries of this many fp32 values.
SLICE_VALUES = 1 << 18


@dataclass(frozen=True)
class QuantTensor:
    """A tensor in its packed form. `shape` in torch order; `raw` uint8 [bytes], often
    a view of a mapped file."""

    format: str
    shape: tuple[int, ...]
    raw: Tensor

    @property
    def nbytes(self) -> int:
        return self.raw.numel()

    @property
    def row_bytes(self) -> int:
        return FORMATS[self.format].row_bytes(self.shape[-1])

    @property
    def row_count(self) -> int:
        """Rows when all dimensions but the last are flattened."""
        return math.prod(self.shape[:-1])

    def rows(self, start: int, stop: int) -> QuantTensor:
        """Rows start..stop of the flattened tensor, shape [stop - start, columns]; shares memory."""
        piece = self.raw[start * self.row_bytes : stop * self.row_bytes]
        return QuantTensor(self.format, (stop - start, self.shape[-1]), piece)

    def __getitem__(self, index: int) -> QuantTensor:
        """Entry `index` of the first dimension (an expert, say); shares memory."""
        if len(self.shape) < 2 or not 0 <= index < self.shape[0]:
            raise IndexError(f"index {index} into a tensor of shape {self.shape}")
        each = self.nbytes // self.shape[0]
        return QuantTensor(self.format, self.shape[1:], self.raw[index * each : (index + 1) * each])

    def to(self, device: torch.device) -> QuantTensor:
        """The same bytes on a device; itself where they are there."""
        return (
            self if self.raw.device == device else QuantTensor(self.format, self.shape, self.raw.to(device))
        )

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, [*shape] in `dtype`."""
        return dequantise(self.format, self.raw, self.shape, dtype=dtype)


def dequantise(
    format: str,
    raw: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Values of packed bytes: raw uint8 of any shape -> [*shape] in `dtype` (computed in fp32).

    `out`, when given, is a contiguous tensor of that many values to write into. Bit for bit equal to the
    `gguf` package's `dequantize` in fp32. Raises ValueError for an unknown format or a wrong number of bytes.
    """
    layout = _layout(format)
    expected = layout.tensor_bytes(shape)
    if raw.numel() != expected:
        raise ValueError(f"{format} tensor of shape {tuple(shape)} takes {expected} bytes, not {raw.numel()}")
    if out is None:
        out = torch.empty(tuple(shape), dtype=dtype, device=raw.device)
    flat, blocks = out.view(-1, layout.block), raw.reshape(-1, layout.size)
    step = max(1, 4 * SLICE_VALUES // layout.block)
    for start in range(0, len(blocks), step):
        flat[start : start + step] = DEQUANTISE[format](blocks[start : start + step])
    return out


def quantise(format: str, values: Tensor) -> Tensor:
    """Packed bytes of values [..., columns] (any float dtype) -> uint8 [..., row bytes].

    Q8_0, Q5_1, Q5_0 and Q4_0 are bit for bit those of ggml's reference quantisers; the K-quants search their
    scales (see `quantize`). Raises ValueError for a format that is not written, or rows
    that blocks do not divide.
    """
    layout = _layout(format)
    if not layout.writable:
        raise ValueError(f"{format} can be read, not written")
    width = layout.row_bytes(values.shape[-1])
    blocks = values.reshape(-1, layout.block)
    packed = torch.empty(len(blocks), layout.size, dtype=torch.uint8, device=values.device)
    step = max(1, SLICE_VALUES // layout.block)
    for start in range(0, len(blocks), step):
        packed[start : start + step] = QUANTISE[format](blocks[start : start + step].float())
    return packed.view(*values.shape[:-1], width)


def _layout(format: str) -> Format:
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    return FORMATS[format]
