"""Where layers get their repacked weights: repacked on the spot, or from somewhere that has them already.

A layer asks for each of its weights by name, kind and sizes. `Repacker` repacks it into fresh memory; a
subclass may name the memory to use (a mapped file's, a buffer's), decide whether the repacking is still to be
done, and hear how far it is.
"""

from __future__ import annotations

from collections.abc import Callable

from ..formats.quant_tensor import QuantTensor
from .repacked import (
    TILE,
    BorrowedMemory,
    RepackedExperts,
    RepackedMatrix,
    RowTable,
    repacked_kind,
)

# Source bytes between two calls of `passed`.
STRETCH = 16 << 20


class Repacker:
    """Repacks what it is asked for, into memory of its own. Names are dotted: the
    layer's, then the weight's."""

    def memory(self, name: str, kind: str, shape: tuple[int, ...]) -> BorrowedMemory | None:
        """Where the weight [n, k] or [experts, n, k] shall lie; None: in library memory of its own."""
        return None

    def finish(self, name: str, made: RepackedMatrix | RepackedExperts, repack: Callable[[], None]) -> None:
        """Has the weight's memory filled, by calling `repack` unless it is already."""
        repack()

    def passed(self, source: QuantTensor, count: int) -> None:
        """Hears now and then that the first `count` bytes of a tensor have been repacked."""

    def matrix(self, name: str, weight: QuantTensor, kind: str) -> RepackedMatrix:
        """A weight [n, k]. Raises ValueError for a format that cannot be packed as `kind`."""
        n, k = weight.shape
        made = RepackedMatrix(kind, n, k, self.memory(name, kind, (n, k)))
        self.finish(name, made, lambda: self._fill_matrix(made, weight))
        return made

    def transposed(self, name: str, table: RowTable, kind: str) -> RepackedMatrix:
        """A table [rows, columns] as the matrix [columns, rows]; kind INT8 or F32."""
        shape = (table.columns, table.rows)
        made = RepackedMatrix(kind, *shape, self.memory(name, kind, shape))
        self.finish(name, made, lambda: made.fill_transposed(table.format, table.raw))
        return made

    def stacked(self, name: str, parts: tuple[QuantTensor, ...], kind: str | None = None) -> RepackedExperts:
        """A weight [E, n, k], or several of one format side by side along n."""
        count, _, columns = parts[0].shape
        shape = (count, sum(part.shape[1] for part in parts), columns)
        kind = kind or repacked_kind(parts[0].format)
        made = RepackedExperts(kind, *shape, self.memory(name, kind, shape))
        self.finish(name, made, lambda: self._fill_experts(made, parts))
        return made

    def _fill_matrix(self, made: RepackedMatrix, weight: QuantTensor) -> None:
        step = max(TILE, STRETCH // weight.row_bytes // TILE * TILE)
        for row in range(0, made.n, step):
            stop = min(made.n, row + step)
            made.fill(row, weight.format, weight.rows(row, stop).raw, stop - row)
            self.passed(weight, stop * weight.row_bytes)

    def _fill_experts(self, made: RepackedExperts, parts: tuple[QuantTensor, ...]) -> None:
        if len(parts) == 1 and made.n % TILE == 0:
            # Whole tiles one after the other: the same bytes as one tall matrix, in larger
            # pieces for the threads.
            rows = made.experts * made.n
            tall = RepackedMatrix(made.kind, rows, made.k, BorrowedMemory(made.data, made.nbytes, made))
            return self._fill_matrix(tall, parts[0])
        stretch = max(1, STRETCH * made.experts // sum(part.nbytes for part in parts))
        for expert in range(made.experts):
            row = 0
            for part in parts:
                made.fill(expert, row, part.format, part[expert].raw, part.shape[1])
                row += part.shape[1]
            if (expert + 1) % stretch == 0 or expert + 1 == made.experts:
                for part in parts:
                    self.passed(part, part.nbytes // made.experts * (expert + 1))
        return None


__all__ = ["STRETCH", "Repacker"]
