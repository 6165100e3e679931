"""Equal pieces of the library's huge-page memory, each freed with the object that stands for it.

A piece may be some kilobytes (a test's model) or fifty megabytes (256 tokens of a large one), the system
gives memory in huge pages of 2 MiB: small pieces share a slab. A slab goes back to the system when its last
piece is free; pieces are taken from the fullest slab, so that slabs do become empty.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque

from .loader import library

_HUGE_PAGE = 2 << 20
# A slab takes more than one piece where this much of it would be lost to rounding otherwise.
_MOST_LOST = 1 / 16


class MemoryBlock:
    """`nbytes` of memory at `address`, aligned to 64 bytes, holding anything. Lives as long as this
    object."""

    __slots__ = ("__weakref__", "address", "nbytes")

    def __init__(self, nbytes: int) -> None:
        """Raises MemoryError when there is none left."""
        self.nbytes = -(-nbytes // 64) * 64
        slabs = _slabs_of(self.nbytes)
        self.address = slabs.take()
        weakref.finalize(self, slabs.give_back, self.address)

    def copy(self) -> MemoryBlock:
        other = MemoryBlock(self.nbytes)
        ctypes.memmove(other.address, self.address, self.nbytes)
        return other


class _Slabs:
    """All slabs for pieces of one size."""

    def __init__(self, piece: int) -> None:
        self.piece = piece
        self.per_slab = _pieces_in_a_slab(piece)
        self.free: dict[int, list[int]] = {}  # slab -> addresses
        self._owner: dict[int, int] = {}  # address -> slab
        # A piece may end on any thread, even inside `take` (when the garbage collector runs):
        # it is only noted then.
        self._returned: deque[int] = deque()
        self._lock = threading.Lock()

    def take(self) -> int:
        with self._lock:
            self._sort_returned()
            slab = min(
                (s for s, free in self.free.items() if free), key=lambda s: len(self.free[s]), default=None
            )
            if slab is None:
                slab = self._new()
            return self.free[slab].pop()

    def give_back(self, address: int) -> None:
        self._returned.append(address)
        if self._lock.acquire(blocking=False):
            try:
                self._sort_returned()
            finally:
                self._lock.release()

    def _new(self) -> int:
        nbytes = self.piece * self.per_slab
        slab = library().canvas_alloc(nbytes)
        if not slab:
            raise MemoryError(f"no memory for {nbytes / 2**20:.0f} MiB of keys and values")
        self.free[slab] = [slab + i * self.piece for i in range(self.per_slab)]
        self._owner |= dict.fromkeys(self.free[slab], slab)
        return int(slab)

    def _sort_returned(self) -> None:
        while self._returned:
            address = self._returned.popleft()
            slab = self._owner[address]
            self.free[slab].append(address)
            if len(self.free[slab]) == self.per_slab:
                for piece in self.free.pop(slab):
                    del self._owner[piece]
                library().canvas_free(slab, self.piece * self.per_slab)


def _pieces_in_a_slab(piece: int) -> int:
    count = 1
    while True:
        whole = -(-piece * count // _HUGE_PAGE) * _HUGE_PAGE
        if whole - piece * count <= _MOST_LOST * whole:
            return count
        count += 1


_all: dict[int, _Slabs] = {}
_all_lock = threading.Lock()


def _slabs_of(piece: int) -> _Slabs:
    with _all_lock:
        return _all.setdefault(piece, _Slabs(piece))


def held() -> int:
    """Bytes taken from the system for pieces, free ones included."""
    with _all_lock:
        return sum(s.piece * s.per_slab * len(s.free) for s in _all.values())


__all__ = ["MemoryBlock", "held"]
