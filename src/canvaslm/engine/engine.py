"""The engine: `step()` is the whole algorithm; all else is how requests get in and events get out."""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..cache import PrefixCache
from ..diffusion import advance, check_params, settle, start_canvas, temperature
from ..errors import CanvasError, EngineFailure, PromptTooLong, UsageError
from ..model import DiffusionGemma
from ..ops.predict import Prediction
from ..types import (
    Committed,
    Draft,
    Event,
    Failed,
    Finished,
    FinishReason,
    Request,
    Settled,
)
from .runner import Runner
from .scheduler import Row, Scheduler
from .sequence import Sequence, State

MAX_TOP_LOGPROBS = 20
log = logging.getLogger("canvaslm.engine")


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
        kv_memory: int | None = None,
        deterministic: bool = False,
        kv_type: torch.dtype | None = None,
        exact: bool = False,
        mixed: bool = True,
    ) -> None:
        """max_rows: sequences denoised at once. kv_memory, prefix_memory: bytes for the keys and values of running
        sequences (None: no limit) and of remembered ones (0: none are remembered). See Runner for the others.
        """
        self.config = model.config
        self.runner = Runner(model, deterministic=deterministic, kv_type=kv_type, exact=exact, mixed=mixed)
        self.scheduler = Scheduler(max_rows, kv_memory)
        self.prefixes = PrefixCache(prefix_memory, self.runner.new_cache)
        self.max_context = min(
            max_context or self.config.max_position_embeddings, self.config.max_position_embeddings
        )
        self._ids = itertools.count()
        self._events: list[Event] = []

    def step(self) -> list[Event]:
        """One step: admits what fits, encodes what is new, denoises every live canvas once, settles what is done.

        Encoding and denoising are one pass of the model over all rows. A canvas whose context is completed in this
        step, by the last of a prompt or by the canvas committed before it, takes its first step in the same pass: in
        each layer the context's keys and values are there before the canvas asks for them. `Scheduler.rows` says how
        much is encoded in a step.
        """
        for sequence in self.scheduler.admit():
            self._open(sequence)
        rows = self.scheduler.rows()
        for part in self.runner.passes(rows):
            self._run(part)
        for sequence in self.scheduler.denoising():
            if sequence.canvas is not None and sequence.canvas.stop is not None:
                self._settle(sequence)
        events, self._events = self._events, []
        return events

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id. Raises UsageError (PromptTooLong) for what can never run."""
        params = check_params(request.params)
        if params.seed is None:
            # 32 bits: readers of JSON that know only doubles round what is above 2^53.
            params = replace(params, seed=secrets.randbits(32))
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
        sequence.kv_bytes = self.runner.cache_bytes(self._expected(sequence))
        self._check_memory(sequence)
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

    def _expected(self, sequence: Sequence) -> int:
        """Tokens the sequence's cache may come to hold, the last canvas included."""
        return len(sequence.request.tokens) + sequence.max_canvases * self.config.canvas_length

    def _check_memory(self, sequence: Sequence) -> None:
        limit = self.scheduler.kv_memory
        if limit is not None and sequence.kv_bytes > limit:
            raise UsageError(
                f"the request may need {sequence.kv_bytes / 2**20:.1f} MiB of keys and values, kv_memory is "
                f"{limit / 2**20:.1f} MiB: ask for fewer max_new_tokens or raise kv_memory",
                "max_new_tokens",
            )

    def _check_tokens(self, request: Request) -> None:
        if not request.tokens:
            raise UsageError("the prompt is empty", "messages")
        vocab, places = self.config.vocab_size, self.config.canvas_length
        if not all(0 <= token < vocab for token in (*request.tokens, *request.given.values())):
            raise UsageError(f"a token id is outside the vocabulary of {vocab}", "messages")
        if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
            raise UsageError(
                f"top_logprobs = {request.top_logprobs} is not in 0 .. {MAX_TOP_LOGPROBS}", "top_logprobs"
            )
        if not all(0 <= place < places for place in request.given):
            raise UsageError(f"a given place is outside the canvas of {places}", "given")

    def _open(self, sequence: Sequence) -> None:
        """Gives an admitted sequence its cache, with as much of its prompt as is remembered."""
        sequence.clock.mark("admitted")
        tokens = sequence.request.tokens
        live = [(s.encoded, s.cache) for s in self.scheduler.running if s.cache is not None]
        expected = self._expected(sequence)
        sequence.cache = self.prefixes.take(tokens, live, expected) or self.runner.new_cache(expected)
        sequence.cached_tokens = sequence.cache.length
        sequence.encoded = list(tokens[: sequence.cached_tokens])
        sequence.pending = list(tokens[sequence.cached_tokens :])
        self._start_canvas(sequence)

    def _start_canvas(self, sequence: Sequence) -> None:
        """Lays out the next canvas, to be denoised as soon as nothing is left to encode before it."""
        index = len(sequence.reports)
        sequence.canvas = start_canvas(
            sequence.seed,
            index,
            self.config.canvas_length,
            self.config.vocab_size,
            self.runner.device,
            sequence.request.given if index == 0 else None,
        )
        sequence.settled, sequence.state = 0, State.ENCODE

    def _run(self, rows: list[Row]) -> None:
        """One pass. If it fails, each row runs by itself, so that only those fail that cannot run."""
        rows = [row for row in rows if row.sequence.state is not State.FINISHED]
        if not rows:
            return
        begin = time.perf_counter()
        try:
            predictions = self.runner.run(rows)
        except Exception as error:
            if len(rows) == 1:
                self._fail(rows[0].sequence, error)
                return
            log.warning("a pass over %d rows failed, now each runs by itself: %r", len(rows), error)
        else:
            for row, prediction in zip(rows, predictions, strict=True):
                self._take(row, prediction)
            took = time.perf_counter() - begin
            for row in rows:
                row.sequence.clock.share(took, row.count, self.config.canvas_length if row.denoise else 0)
            return
        for row in rows:  # outside the handler, where what the failed pass had in memory is free
            self._run([row])

    def _take(self, row: Row, prediction: Prediction | None) -> None:
        """What a pass has made of one row."""
        sequence = row.sequence
        if not sequence.pending:
            sequence.state = State.DENOISE
        if prediction is None:
            return
        try:
            self._advance(sequence, prediction)
        except Exception as error:
            self._fail(sequence, error)

    def _advance(self, sequence: Sequence, prediction: Prediction) -> None:
        assert sequence.canvas is not None
        sequence.canvas = advance(
            sequence.canvas,
            prediction,
            sequence.params,
            self.config.vocab_size,
            sequence.request.eos_token_ids,
        )
        sequence.clock.mark("first_draft")
        if sequence.request.drafts:
            self._events.append(_draft(sequence))
        if sequence.params.settle_steps and sequence.canvas.stop is None:
            self._send_early(sequence)

    def _send_early(self, sequence: Sequence) -> None:
        """Sends, and freezes, the part of a live canvas that has been certain for long enough."""
        assert sequence.canvas is not None
        before = sequence.settled
        sequence.canvas, sequence.settled = settle(sequence.canvas, before, sequence.params)
        kept, _ = self._cut(sequence)
        if tokens := kept[before : sequence.settled]:
            self._events.append(Settled(sequence.id, sequence.canvas.index, tuple(tokens)))

    def _cut(self, sequence: Sequence) -> tuple[list[int], bool]:
        """The canvas's tokens that belong to the answer, and whether an EOS is among them."""
        assert sequence.canvas is not None
        room = sequence.params.max_new_tokens - len(sequence.output)
        tokens: list[int] = sequence.canvas.argmax[:room].tolist()
        ends = [i for i, token in enumerate(tokens) if token in sequence.request.eos_token_ids]
        return (tokens[: ends[0] + 1], True) if ends else (tokens, False)

    def _settle(self, sequence: Sequence) -> None:
        """Commits a finished canvas; then ends the sequence, or makes the canvas context of the next."""
        assert sequence.canvas is not None
        kept, ended = self._cut(sequence)
        sequence.output += kept
        sequence.reports.append(sequence.report())
        sequence.clock.mark("first_commit")
        self._events.append(_committed(sequence, kept))
        if ended:
            self._finish(sequence, "stop")
        elif len(sequence.reports) == sequence.max_canvases:
            self._finish(sequence, "length")
        else:
            sequence.pending = sequence.canvas.argmax.tolist()
            self._start_canvas(sequence)

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

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Ends a sequence with an error; the engine goes on."""
        known = error if isinstance(error, CanvasError) else EngineFailure(f"{type(error).__name__}: {error}")
        known.__cause__ = error if known is not error else None
        self.scheduler.remove(sequence)
        sequence.cache = sequence.canvas = None
        self._events.append(Failed(sequence.id, known))


def _committed(sequence: Sequence, kept: list[int]) -> Committed:
    canvas, wanted = sequence.canvas, sequence.request.top_logprobs
    assert canvas is not None
    event = Committed(sequence.id, canvas.index, tuple(kept[sequence.settled :]), sequence.reports[-1])
    if wanted is None or canvas.logprob is None:
        return event
    logprobs = tuple(canvas.logprob[: len(kept)].tolist())
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    if wanted and canvas.top is not None:
        rows = zip(canvas.top[0].tolist(), canvas.top[1].tolist(), kept, strict=False)
        top = tuple(tuple(zip(ids[:wanted], values[:wanted], strict=True)) for ids, values, _ in rows)
    return replace(event, logprobs=logprobs, top_logprobs=top)


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
