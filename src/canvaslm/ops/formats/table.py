"""Block and type sizes of the quantised layouts: the table alone, without torch, for reading headers quickly.

Layouts: ggml's `ggml-common.h` (structs `block_*`); type ids: `enum ggml_type` in `ggml.h`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FORMATS", "GGML_TYPE_NAMES", "Format", "format_by_id"]


@dataclass(frozen=True)
class Format:
    """One layout: `block` values take `size` bytes. `type_id` is ggml's number for it."""

    name: str
    type_id: int
    block: int
    size: int
    writable: bool = False

    @property
    def bits(self) -> float:
        """Bits per value, scales included."""
        return 8 * self.size / self.block

    def fits(self, columns: int) -> bool:
        """Whether rows of `columns` values divide into whole blocks."""
        return columns > 0 and columns % self.block == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of `columns` values. Raises ValueError when blocks do not divide it."""
        if not self.fits(columns):
            raise ValueError(f"{self.name} needs rows of a multiple of {self.block} values, not {columns}")
        return columns // self.block * self.size

    def tensor_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of `shape` (torch order: the last dimension is the row)."""
        return math.prod(shape[:-1]) * self.row_bytes(shape[-1])


# A row more, with a function of the same name in `dequantize.DEQUANTISE`, is a format that loads
# and runs on plain torch.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("F32", 0, 1, 4, writable=True),
        Format("F16", 1, 1, 2, writable=True),
        Format("BF16", 30, 1, 2, writable=True),
        Format("Q8_0", 8, 32, 34, writable=True),
        Format("Q6_K", 14, 256, 210, writable=True),
        Format("Q5_K", 13, 256, 176, writable=True),
        Format("Q5_1", 7, 32, 24, writable=True),
        Format("Q5_0", 6, 32, 22, writable=True),
        Format("Q4_K", 12, 256, 144, writable=True),
        Format("Q4_1", 3, 32, 20),
        Format("Q4_0", 2, 32, 18, writable=True),
        Format("IQ4_NL", 20, 32, 18),
        Format("IQ4_XS", 23, 256, 136),
        Format("Q3_K", 11, 256, 110),
        Format("Q2_K", 10, 256, 84),
    )
}

# Every id ggml has given out, so that an unsupported file can be told what it holds.
GGML_TYPE_NAMES: dict[int, str] = {f.type_id: f.name for f in FORMATS.values()} | {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


def format_by_id(type_id: int) -> Format | None:
    """The format with ggml's number `type_id`, or None when canvaslm does not read it."""
    return next((format for format in FORMATS.values() if format.type_id == type_id), None)
