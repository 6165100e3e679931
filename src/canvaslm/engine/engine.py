"""The engine: `step()` is the whole algorithm; all else is how requests get in and events get out."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..cache import PrefixCache
from ..diffusion import advance, check_params, start_canvas, temperature
from ..errors import CanvasError, EngineFailure, PromptTooLong, UsageError
from ..model import DiffusionGemma
from ..types import Committed, Draft, Event, Failed, Finished, FinishReason, Request
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Sequence, State


class Engine:
    """Denoises many requests at once, each at its own step. Deals in token ids only.

    Not thread-safe: one thread submits, steps and cancels. Every submitted request ends in exactly one terminal
    event, `Finished` or `Failed`.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        *,
        max_rows: int = 16,
        max_context: int | None = None,
        prefix_memory: int = 2**30,
    ) -> None:
        self.config = model.config
        self.runner = Runner(model)
        self.scheduler = Scheduler(max_rows)
        self.prefixes = PrefixCache(prefix_memory)
        self.max_context = min(
            max_context or self.config.max_position_embeddings, self.config.max_position_embeddings
        )
        self._ids = itertools.count()
        self._events: list[Event] = []

    def step(self) -> list[Event]:
        """One pass: admits what fits, encodes what is new, denoises every live canvas once, settles what is done."""
        for sequence in self.scheduler.admit():
            self._open(sequence)
        for sequence in self.scheduler.encoding():
            self._guard([sequence], self._encode)
        self._guard(self.scheduler.denoising(), self._denoise)
        for sequence in self.scheduler.denoising():
            if sequence.canvas is not None and sequence.canvas.stop is not None:
                self._settle(sequence)
        events, self._events = self._events, []
        return events

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id. Raises UsageError (PromptTooLong) for what can never run."""
        params = check_params(request.params)
        params = params if params.seed is not None else replace(params, seed=secrets.randbits(63))
        self._check_tokens(request)
        wanted = math.ceil(params.max_new_tokens / self.config.canvas_length)
        fits = (self.max_context - len(request.tokens)) // self.config.canvas_length
        if fits < 1:
            raise PromptTooLong(
                f"the prompt has {len(request.tokens)} tokens; with a canvas of {self.config.canvas_length} it does "
                f"not fit the context of {self.max_context}: shorten it",
                "messages",
            )
        sequence = Sequence(next(self._ids), request, params, min(wanted, fits))
        self.scheduler.add(sequence)
        return sequence.id

    def cancel(self, request_id: int) -> None:
        """Ends a request now; its Finished(reason="cancelled") comes with the next step's events."""
        sequence = self.scheduler.find(request_id)
        if sequence is not None:
            self._finish(sequence, "cancelled")

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting or self._events)

    def run(self, request: Request) -> Iterator[Event]:
        """Submits one request and yields its events. Closing the iterator cancels the request."""
        request_id = self.submit(request)
        try:
            while self.has_work:
                for event in self.step():
                    if event.request_id == request_id:
                        yield event
                        if isinstance(event, Finished | Failed):
                            return
        finally:
            self.cancel(request_id)
            self._events = [e for e in self._events if e.request_id != request_id]

    def _check_tokens(self, request: Request) -> None:
        if not request.tokens:
            raise UsageError("the prompt is empty", "messages")
        vocab, places = self.config.vocab_size, self.config.canvas_length
        if not all(0 <= token < vocab for token in (*request.tokens, *request.given.values())):
            raise UsageError(f"a token id is outside the vocabulary of {vocab}", "messages")
        if not all(0 <= place < places for place in request.given):
            raise UsageError(f"a given place is outside the canvas of {places}", "given")

    def _open(self, sequence: Sequence) -> None:
        """Gives an admitted sequence its cache, with as much of its prompt as is remembered."""
        sequence.clock.mark("admitted")
        tokens = sequence.request.tokens
        sequence.cache = self.prefixes.take(tokens) or self.runner.new_cache()
        sequence.cached_tokens = sequence.cache.length
        sequence.encoded = list(tokens[: sequence.cached_tokens])
        sequence.pending = list(tokens[sequence.cached_tokens :])

    def _encode(self, sequences: list[Sequence]) -> None:
        """Encodes one chunk of a sequence, and lays out its next canvas when that was the last."""
        (sequence,) = sequences
        begin = time.perf_counter()
        self.runner.encode(sequence)
        sequence.clock.encode += time.perf_counter() - begin
        if not sequence.pending:
            index = len(sequence.reports)
            sequence.canvas = start_canvas(
                sequence.seed,
                index,
                self.config.canvas_length,
                self.config.vocab_size,
                self.runner.device,
                sequence.request.given if index == 0 else None,
            )
            sequence.state = State.DENOISE

    def _denoise(self, sequences: list[Sequence]) -> None:
        begin = time.perf_counter()
        predictions = self.runner.denoise(sequences)
        for sequence, prediction in zip(sequences, predictions, strict=True):
            assert sequence.canvas is not None
            sequence.canvas = advance(sequence.canvas, prediction, sequence.params, self.config.vocab_size)
            sequence.clock.mark("first_draft")
            if sequence.request.drafts:
                self._events.append(_draft(sequence))
        for sequence in sequences:
            sequence.clock.denoise += time.perf_counter() - begin

    def _settle(self, sequence: Sequence) -> None:
        """Commits a finished canvas; then ends the sequence, or sends the canvas to be encoded."""
        assert sequence.canvas is not None
        tokens: list[int] = sequence.canvas.argmax.tolist()
        ends = [i for i, token in enumerate(tokens) if token in sequence.request.eos_token_ids]
        room = sequence.params.max_new_tokens - len(sequence.output)
        kept = (tokens[: ends[0] + 1] if ends else tokens)[:room]
        sequence.output += kept
        sequence.reports.append(sequence.report())
        sequence.clock.mark("first_commit")
        self._events.append(
            Committed(sequence.id, len(sequence.reports) - 1, tuple(kept), sequence.reports[-1])
        )
        if ends and ends[0] < room:
            self._finish(sequence, "stop")
        elif len(sequence.reports) == sequence.max_canvases:
            self._finish(sequence, "length")
        else:
            sequence.pending, sequence.canvas, sequence.state = tokens, None, State.ENCODE

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.remove(sequence)
        self._release(sequence)
        self._events.append(
            Finished(
                sequence.id,
                reason,
                sequence.usage(),
                sequence.clock.timings(),
                sequence.seed,
                tuple(sequence.reports),
            )
        )

    def _release(self, sequence: Sequence) -> None:
        """Hands the encoded context to the prefix cache."""
        if sequence.cache is not None and sequence.encoded:
            self.prefixes.put(tuple(sequence.encoded), sequence.cache)
        sequence.cache = sequence.canvas = None

    def _guard(self, sequences: list[Sequence], work: Callable[[list[Sequence]], None]) -> None:
        """Runs work on sequences; an exception fails just these, and the engine goes on."""
        if not sequences:
            return
        try:
            work(sequences)
        except Exception as error:
            known = (
                error if isinstance(error, CanvasError) else EngineFailure(f"{type(error).__name__}: {error}")
            )
            known.__cause__ = error if known is not error else None
            for sequence in sequences:
                self.scheduler.remove(sequence)
                sequence.cache = sequence.canvas = None
                self._events.append(Failed(sequence.id, known))


def _draft(sequence: Sequence) -> Draft:
    canvas, params = sequence.canvas, sequence.params
    assert canvas is not None and canvas.entropy is not None
    assert canvas.accepted is not None and canvas.changed is not None
    return Draft(
        sequence.id,
        canvas.index,
        canvas.step,
        params.max_denoising_steps,
        temperature(params, canvas.step - 1),
        tuple(canvas.argmax.tolist()),
        tuple(canvas.entropy.tolist()),
        tuple(canvas.accepted.tolist()),
        tuple(canvas.changed.tolist()),
    )


__all__ = ["Engine"]
