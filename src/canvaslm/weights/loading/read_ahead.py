"""Mapped bytes into memory before they are used: at the disk's speed, with a progress
bar, and not fault by fault."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from torch import Tensor

from .loaded import Progress

# Small enough for a bar that moves and a Ctrl-C that works.
CHUNK = 64 << 20
# Two keep a disk busier than one: 1.4 instead of 1.0 GB/s where this was measured.
_READERS = 2
_HUGEPAGE, _POPULATE_READ = 14, 22  # Linux; the second since 5.14


def read_ahead(views: Sequence[Tensor], progress: Progress | None = None) -> None:
    """Reads views of mapped files (uint8, contiguous), in order, and enters their pages in
    the process's page table.

    What memory does not hold is read again when it is used.
    """
    chunks = [view[i : i + CHUNK] for view in views for i in range(0, view.numel(), CHUNK)]
    done, total = 0, sum(view.numel() for view in views)
    for view in views:
        # Large pages, where the file system has them: a page table of 10,000 entries instead of 4 million.
        _advise(view, _HUGEPAGE)
    pool = ThreadPoolExecutor(_READERS)
    try:
        for chunk, _ in zip(chunks, pool.map(_read, chunks), strict=True):
            done += chunk.numel()
            if progress is not None:
                progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(view: Tensor) -> None:
    if not _advise(view, _POPULATE_READ):
        view[:: mmap.PAGESIZE].max()


def _advise(view: Tensor, advice: int) -> bool:
    """Whether the system took the advice. Not by way of `mmap.madvise`, which holds
    Python's lock while it waits."""
    madvise = _madvise()
    if madvise is None or not view.numel():
        return False
    first = view.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    return bool(madvise(first, view.data_ptr() + view.numel() - first, advice) == 0)


@cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function


__all__ = ["CHUNK", "read_ahead"]
