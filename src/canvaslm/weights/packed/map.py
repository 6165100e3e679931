"""Weights out of a packed file: mapped into memory and used where they lie, shared by
every process that does so.

What the loader asks for decides. Each weight must be in the file with the kind and the sizes that are
wanted, and in as many bytes as the kernels will read: a kernel never gets an address that was not
checked against the map.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...ops.cpu.repacked import BorrowedMemory, RepackedExperts, RepackedMatrix, repacked_bytes
from ...ops.cpu.repacker import Repacker
from ..safetensors_.header import SafetensorsHeader
from .file import Unusable, described


class PackedMap(Repacker):
    """Gives out the weights of a packed file; they keep it mapped."""

    def __init__(self, header: SafetensorsHeader) -> None:
        """Raises Unusable for a file without weights, and for one replaced since its header was read."""
        self.header = header
        self.bytes = _mapped(header)
        self._asked: set[str] = set()

    def memory(self, name: str, kind: str, shape: tuple[int, ...]) -> BorrowedMemory:
        """Raises Unusable unless the file has exactly that weight."""
        info, wanted = self.header.tensors.get(name), described(kind, shape)
        if info is None or self.header.metadata.get(name) != wanted:
            raise Unusable(f"was packed otherwise than is wanted here (not with {name} as {wanted})")
        if info.nbytes != repacked_bytes(kind, shape):
            raise Unusable(f"is damaged ({name} has {info.nbytes} bytes)")
        self._asked.add(name)
        view = self.bytes[info.start : info.end]
        return BorrowedMemory(view.data_ptr(), view.numel(), view)

    def finish(self, name: str, made: RepackedMatrix | RepackedExperts, repack: Callable[[], None]) -> None:
        """Nothing is left to do."""

    def check_complete(self) -> None:
        """Raises Unusable if the file holds weights that nobody asked for."""
        if left := self.header.tensors.keys() - self._asked:
            raise Unusable(f"was packed otherwise than is wanted here (with {min(left)})")

    @property
    def weights(self) -> Tensor:
        """The bytes of all weights."""
        return self.bytes[min(info.start for info in self.header.tensors.values()) :]


def _mapped(header: SafetensorsHeader) -> Tensor:
    """The file as uint8 [bytes], read-only: never write to it."""
    if not header.tensors:
        raise Unusable("is damaged (it holds no weights)")
    try:
        with header.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != max(info.end for info in header.tensors.values()):
                raise Unusable("changed while it was being opened")
            buffer = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise Unusable(f"cannot be mapped ({error})") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch cannot say that a tensor is read-only
        return torch.from_numpy(np.frombuffer(buffer, np.uint8))


__all__ = ["PackedMap"]
