"""Decides which sequences run in a step."""

from __future__ import annotations

from collections import deque

from .sequence import Sequence, State


class Scheduler:
    """First come, first served, at most `max_rows` sequences and `kv_memory` bytes of keys and values at a time."""

    def __init__(self, max_rows: int, kv_memory: int | None = None) -> None:
        self.max_rows, self.kv_memory = max_rows, kv_memory
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Moves waiting sequences into free rows and returns them."""
        admitted = []
        while self.waiting and len(self.running) < self.max_rows and self._fits(self.waiting[0]):
            sequence = self.waiting.popleft()
            sequence.state = State.ENCODE
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def _fits(self, sequence: Sequence) -> bool:
        if self.kv_memory is None:
            return True
        return sequence.kv_bytes + sum(s.kv_bytes for s in self.running) <= self.kv_memory

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is."""
        sequence.state = State.FINISHED
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def encoding(self) -> list[Sequence]:
        return [s for s in self.running if s.state is State.ENCODE]

    def denoising(self) -> list[Sequence]:
        return [s for s in self.running if s.state is State.DENOISE]

    def find(self, request_id: int) -> Sequence | None:
        return next((s for s in (*self.running, *self.waiting) if s.id == request_id), None)


__all__ = ["Scheduler"]
