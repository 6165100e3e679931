"""How many threads the work of one session uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from . import cpu


@dataclass(frozen=True)
class Threads:
    """Threads for torch, and for the native kernels where they are loaded; None
    leaves the setting as it is."""

    torch: int | None = None
    native: int | None = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Sets them, and torch's back at the end: about a microsecond.

        The native kernels' threads stay as they are set: starting them anew for every step would cost more
        than a step of a small model takes, and every session sets its own before it runs.
        """
        if self.native is not None and self.native != cpu.threads():
            cpu.set_threads(self.native)
        before = torch.get_num_threads()
        if self.torch is None or self.torch == before:
            yield
            return
        torch.set_num_threads(self.torch)
        try:
            yield
        finally:
            torch.set_num_threads(before)


__all__ = ["Threads"]
