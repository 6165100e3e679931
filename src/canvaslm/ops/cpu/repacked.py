"""Weights as the native kernels want them: repacked once while loading, then multiplied from where they lie.

GGUF stores a row's values next to each other; the kernels want 16 rows x 4 inputs in each 64 bytes
(csrc/layout.h). Repacking reads a file's bytes wherever they are mapped and writes into huge-page memory of
the library's own, a slice at a time, so that file and repacked copy are never both in memory when the caller
gives the file's pages back.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats.quant_tensor import FORMATS, dequantise, quantise
from .loader import isa, library

# Kind of layout for each format that is kept exactly; the numbers are those of csrc/layout.h.
KINDS = {"Q4_K": 0, "Q5_K": 1, "Q6_K": 2, "Q4_0": 3, "Q5_0": 4, "Q8_0": 5, "INT8": 6, "BF16": 7, "F32": 8}
TILE = 32
# Rows unpacked at once when a format has to go through fp32.
_SLICE_ROWS = 2048


def repacked_kind(format: str) -> str:
    """The kind a format is repacked as when nothing else is asked for: itself, BF16
    for F16, Q8_0 for the rest."""
    if format in KINDS:
        return format
    return "BF16" if format == "F16" else "Q8_0"


def dense_kind(format: str) -> str:
    """The kind of a matrix that every token meets: INT8 where that is faster and its error
    drowns in the format's own.

    One scale per 256 inputs instead of one per 16 or 32 spares the kernels a quarter of their time with
    AVX-512 (the other instruction sets multiply nibbles at least as fast), for 0.7 % of error beside the 1.8
    % of Q6_K and the 7 % of Q4_K; docs/formats.md has the effect on the model. Experts, which are most of the
    memory, keep their 4 bits.
    """
    return "INT8" if format in _COARSE and isa() == "avx512" else repacked_kind(format)


# Formats whose own error is at least twice what INT8 adds.
_COARSE = ("Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K")


def repacked_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Memory of a weight [n, k], or of [experts, n, k]."""
    *experts, n, k = shape
    each: int = library().canvas_repacked_bytes(KINDS[kind], n, k)
    return each * math.prod(experts)


@dataclass(frozen=True)
class BorrowedMemory:
    """Bytes that repacked weights lie in and somebody else owns: a mapped file, a buffer.
    `owner` is kept alive by them."""

    address: int
    nbytes: int
    owner: object


class RepackedMatrix:
    """A weight [n, k] in the kernels' layout. Made by `repack` or `from_float`, or
    filled a slice at a time."""

    def __init__(self, kind: str, n: int, k: int, memory: BorrowedMemory | None = None) -> None:
        """In `memory`, with whatever that holds; by default allocates, and rows read as unset until `fill`ed.

        Raises ValueError, for memory of the wrong size or not on a boundary of 64 bytes too, and MemoryError.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown packed kind {kind!r}; known: {', '.join(KINDS)}")
        if n < 1 or k < 1:
            raise ValueError(f"a packed matrix needs at least one row and column, not [{n}, {k}]")
        self.kind, self.n, self.k = kind, n, k
        self.nbytes: int = library().canvas_repacked_bytes(KINDS[kind], n, k)
        self.memory, self.data = memory, _place(self, self.nbytes, memory)

    @property
    def code(self) -> int:
        return KINDS[self.kind]

    @classmethod
    def repack(cls, format: str, raw: Tensor, n: int, k: int, *, kind: str | None = None) -> RepackedMatrix:
        """Repacks GGUF rows: raw uint8 [bytes] of n rows of k values. `kind` "INT8" requantises on the
        way."""
        made = cls(kind or repacked_kind(format), n, k)
        made.fill(0, format, raw, n)
        return made

    @classmethod
    def from_float(cls, weight: Tensor, kind: str | None = None) -> RepackedMatrix:
        """Repacks a float tensor [n, k] as BF16 (bf16 and fp16), F32 (fp32), or any kind
        that can be quantised to."""
        format, raw = float_rows(weight)
        kind = kind or format
        if kind in ("Q8_0", "Q5_0", "Q4_0", "Q6_K", "Q5_K", "Q4_K"):
            format, raw = kind, quantise(kind, weight).flatten()
        return cls.repack(format, raw, *weight.shape, kind=kind)

    @classmethod
    def transposed(
        cls, format: str, raw: Tensor, rows: int, columns: int, *, kind: str = "INT8"
    ) -> RepackedMatrix:
        """A table [rows, columns] as the matrix [columns, rows]; kind INT8 or F32 (see `soft_embed`)."""
        made = cls(kind, columns, rows)
        made.fill_transposed(format, raw)
        return made

    def fill_transposed(self, format: str, raw: Tensor) -> None:
        """Writes a table of GGUF rows [k, n], turned round. Raises ValueError unless
        the kind is INT8 or F32."""
        if self.kind not in ("INT8", "F32"):
            raise ValueError(f"a transposed table is INT8 or F32, not {self.kind!r}")
        raw = check_raw(format, raw, self.k, self.n)
        library().canvas_transpose(
            self.code, FORMATS[format].type_id, raw.data_ptr(), self.k, self.n, self.data
        )

    def fill(self, row: int, format: str, raw: Tensor, rows: int) -> None:
        """Writes rows [row, row + rows) from GGUF bytes; `row` and all but the last
        slice in multiples of 32."""
        if row % TILE or row + rows > self.n or (rows % TILE and row + rows != self.n):
            raise ValueError(f"rows {row}..{row + rows} of {self.n} are not whole tiles of {TILE}")
        self._fill_at(self.data + self._offset(row), format, check_raw(format, raw, rows, self.k), rows)

    def _offset(self, row: int) -> int:
        return library().canvas_repacked_bytes(self.code, row, self.k) if row else 0

    def _fill_at(self, where: int, format: str, raw: Tensor, rows: int) -> None:
        direct = self.kind == "INT8" and format in _DECODED
        if direct or self.kind == format:
            status = library().canvas_repack(
                self.code, FORMATS[format].type_id, raw.data_ptr(), rows, self.k, where
            )
            if status:
                raise ValueError(f"{format} cannot be packed as {self.kind}")
            return
        each = FORMATS[format].row_bytes(self.k)
        for start in range(0, rows, _SLICE_ROWS):
            count = min(_SLICE_ROWS, rows - start)
            values = dequantise(format, raw[start * each : (start + count) * each], (count, self.k))
            self._fill_at(where + self._offset(start), *_as_kind(self.kind, values), count)


# Formats the library itself turns into fp32.
_DECODED = ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def _as_kind(kind: str, values: Tensor) -> tuple[str, Tensor]:
    """(format, raw) of fp32 values on the way to a kind of layout."""
    if kind in ("F32", "INT8"):
        return float_rows(values.float())
    if kind == "BF16":
        return float_rows(values.bfloat16())
    return kind, quantise(kind, values).flatten()


def float_rows(values: Tensor) -> tuple[str, Tensor]:
    """A float tensor as GGUF rows: ("BF16" or "F32", its bytes). fp16 becomes bf16."""
    if values.dtype == torch.float16:
        values = values.bfloat16()
    if values.dtype not in (torch.bfloat16, torch.float32) or values.device.type != "cpu":
        raise ValueError(f"expected a float tensor on the CPU, not {values.dtype} on {values.device}")
    format = "BF16" if values.dtype == torch.bfloat16 else "F32"
    return format, values.detach().contiguous().view(torch.uint8).flatten()


def check_raw(format: str, raw: Tensor, rows: int, columns: int) -> Tensor:
    """`raw` as contiguous bytes; ValueError when they are not `rows` rows of `columns` values."""
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    expected = FORMATS[format].tensor_bytes((rows, columns))
    if raw.dtype != torch.uint8 or raw.device.type != "cpu" or raw.numel() != expected:
        raise ValueError(
            f"{format} rows [{rows}, {columns}] are {expected} uint8 bytes on the CPU, "
            f"not {raw.numel()} of {raw.dtype} on {raw.device}"
        )
    return raw.contiguous()


def _place(owner: object, nbytes: int, memory: BorrowedMemory | None) -> int:
    """The address of `memory`, checked, or of library memory that lives as long as `owner`."""
    if memory is not None:
        if memory.nbytes != nbytes or memory.address % 64:
            raise ValueError(f"{memory.nbytes} bytes at {memory.address:#x} cannot hold {nbytes} packed ones")
        return memory.address
    lib = library()
    address = lib.canvas_alloc(nbytes)
    if not address:
        raise MemoryError(f"no memory for {nbytes / 2**20:.0f} MiB of packed weights")
    weakref.finalize(owner, lib.canvas_free, address, nbytes)
    return int(address)


class RepackedExperts:
    """Weights of all experts [experts, n, k], one repacked matrix after the other."""

    def __init__(self, kind: str, experts: int, n: int, k: int, memory: BorrowedMemory | None = None) -> None:
        """As `RepackedMatrix`."""
        if kind not in KINDS:
            raise ValueError(f"unknown packed kind {kind!r}; known: {', '.join(KINDS)}")
        if min(experts, n, k) < 1:
            raise ValueError(f"packed experts need positive sizes, not [{experts}, {n}, {k}]")
        self.kind, self.experts, self.n, self.k = kind, experts, n, k
        self.each: int = library().canvas_repacked_bytes(KINDS[kind], n, k)
        self.nbytes = self.each * experts
        self.memory, self.data = memory, _place(self, self.nbytes, memory)

    @property
    def code(self) -> int:
        return KINDS[self.kind]

    @classmethod
    def repack(
        cls, format: str, raw: Tensor, experts: int, n: int, k: int, *, kind: str | None = None
    ) -> RepackedExperts:
        """Repacks GGUF rows of a tensor [experts, n, k]."""
        made = cls(kind or repacked_kind(format), experts, n, k)
        size = FORMATS[format].tensor_bytes((n, k)) if format in FORMATS else 0
        check_raw(format, raw, experts * n, k)
        for expert in range(experts):
            made.fill(expert, 0, format, raw[expert * size : (expert + 1) * size], n)
        return made

    @classmethod
    def from_float(cls, weight: Tensor, kind: str | None = None) -> RepackedExperts:
        """Repacks a float tensor [experts, n, k]; kinds as in `RepackedMatrix.from_float`."""
        experts, n, k = weight.shape
        kind = kind or float_rows(weight[0])[0]
        made = cls(kind, experts, n, k)
        for expert in range(experts):
            made.fill(expert, 0, *_as_kind(kind, weight[expert].detach().float()), n)
        return made

    def fill(self, expert: int, row: int, format: str, raw: Tensor, rows: int) -> None:
        """Writes rows [row, row + rows) of one expert; split gate and up tensors go in one after the
        other."""
        if not 0 <= expert < self.experts:
            raise ValueError(f"expert {expert} of {self.experts}")
        self.expert(expert).fill(row, format, raw, rows)

    def expert(self, expert: int) -> RepackedMatrix:
        """One expert's matrix, in the same memory."""
        return _ExpertSlice(self, expert)


class _ExpertSlice(RepackedMatrix):
    """One expert's matrix inside a RepackedExperts' memory."""

    def __init__(self, whole: RepackedExperts, expert: int) -> None:
        self.kind, self.n, self.k, self.nbytes = whole.kind, whole.n, whole.k, whole.each
        self.data = whole.data + expert * whole.each
        self.whole = whole


class RowTable:
    """A table [rows, columns] kept as the file's rows, for looking up and summing
    single ones (embeddings)."""

    def __init__(self, format: str, raw: Tensor, rows: int, columns: int) -> None:
        if format not in _DECODED:
            values = dequantise(format, raw, (rows, columns), dtype=torch.bfloat16)
            format, raw = float_rows(values)
        self.format, self.rows, self.columns = format, rows, columns
        self.raw = check_raw(format, raw, rows, columns)

    @property
    def type_id(self) -> int:
        return FORMATS[self.format].type_id

    @classmethod
    def from_float(cls, values: Tensor) -> RowTable:
        """A float table [rows, columns]; fp32 and bf16 share memory with it."""
        return cls(*float_rows(values), *values.shape)


__all__ = [
    "KINDS",
    "BorrowedMemory",
    "RepackedExperts",
    "RepackedMatrix",
    "RowTable",
    "check_raw",
    "dense_kind",
    "float_rows",
    "repacked_bytes",
    "repacked_kind",
]
