"""Decides which sequences run in a step, and what of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from .sequence import Sequence, State

# Tokens of prompts encoded in one step, and of one prompt at most. A prompt is always cut into chunks of this
# many, whoever else is there: where it is cut decides the last bits of what is computed.
ENCODE_CHUNK = 512


@dataclass(frozen=True)
class Row:
    """One sequence's part in a step: its next `count` pending tokens to encode, and
    maybe its canvas to denoise.

    The canvas takes its step when nothing is left to encode before it. `read`: what is encoded is read by
    the causal reader.
    """

    sequence: Sequence
    count: int
    denoise: bool
    read: bool = False


class Scheduler:
    """First come, first served, at most `max_rows` sequences and `kv_memory` bytes of
    keys and values at a time."""

    def __init__(self, max_rows: int, kv_memory: int | None = None, block: int = 1) -> None:
        """block: prompts are cut at multiples of so many tokens."""
        self.max_rows, self.kv_memory = max_rows, kv_memory
        self.chunk = max(block, ENCODE_CHUNK // block * block)
        self.budget = self.chunk  # tokens of prompts a step, of all sequences together; at least one chunk
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def admit(self) -> Iterator[Sequence]:
        """Moves waiting sequences into free rows and yields them, each to be given its cache before the next.

        One whose prompt begins with what another is still encoding for both waits until that is done.
        """
        while self.waiting and len(self.running) < self.max_rows:
            sequence = self.waiting[0]
            if not self._fits(sequence) or any(_encodes_for(other, sequence) for other in self.running):
                return
            self.waiting.popleft()
            sequence.state = State.ENCODE
            self.running.append(sequence)
            yield sequence

    def rows(self) -> list[Row]:
        """What the next step does for whom.

        Every live canvas is denoised, however long the prompts that wait: these share a budget of one chunk a
        step, and a chunk that does not fit into what is left of it waits whole. The oldest prompt always gets
        its chunk, so none waits forever. A committed canvas is encoded at once and counts in no budget: it is
        no longer than the canvas that follows it in the same step, so a step has never more than two canvases
        a row and one budget. (A constraint may commit more than a canvas has places: a chunk a step, then.)
        """
        room, rows = self.budget, []
        for sequence in self.running:
            count = len(sequence.pending)
            if count and not sequence.reports:  # no canvas is finished: this is the prompt
                count = min(count, self.chunk)
                if sequence.is_before_shared:
                    count = min(count, sequence.shared - len(sequence.encoded))
                if count > room:
                    continue
                room -= count
            elif sequence.canvas is not None and sequence.state is not State.READ:
                count = min(count, max(ENCODE_CHUNK, sequence.canvas.tokens.shape[-1]))
            denoise = sequence.canvas is not None and sequence.state is not State.READ
            read = sequence.reader is not None and count > 0
            rows.append(Row(sequence, count, denoise and count == len(sequence.pending), read))
        return rows

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

    def denoising(self) -> list[Sequence]:
        return [s for s in self.running if s.state is State.DENOISE]

    def find(self, request_id: int) -> Sequence | None:
        return next((s for s in (*self.running, *self.waiting) if s.id == request_id), None)


def _encodes_for(other: Sequence, sequence: Sequence) -> bool:
    """Whether one is encoding the beginning that it shares with another."""
    return (
        other.is_before_shared
        and other.shared == sequence.shared
        and other.identity == sequence.identity
        and other.symbols[: other.shared] == sequence.symbols[: other.shared]
    )


__all__ = ["ENCODE_CHUNK", "Row", "Scheduler"]
