"""The engine: `step()` is the whole algorithm; all else is how requests get in and events get out."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from dataclasses import replace

import torch

from ..cache import PrefixCache
from ..diffusion import Canvas, Progress, RowParams, advance, check_params, progress, settle
from ..diffusion.params import bounded
from ..errors import CanvasError, EngineFailure, OutOfMemory, UsageError
from ..model import Model
from ..model.masks import block_of
from ..types import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Request,
    Settled,
)
from .canvases import answer_places, canvas_length, expected_tokens, next_canvas, prompt_end
from .commit import committed_event, draft_event, rest
from .guards import check_marks, guarded, holds_back, keep, note, standing
from .masking import canvas_rules, check_mask
from .rules import RowRules, check_rules, check_watched, speaking
from .runner import Denoised, Runner
from .scheduler import Row, Scheduler
from .sequence import Sequence, State
from .thoughts import TurnState

MAX_TOP_LOGPROBS = 20
log = logging.getLogger("canvaslm.engine")


class Engine:
    """Denoises many requests at once, each at its own step. Deals in token ids only.

    Not thread-safe: one thread submits, steps and cancels. Every submitted request ends in exactly one
    terminal event, `Finished` or `Failed`.
    """

    def __init__(
        self,
        model: Model,
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
        """max_rows: sequences denoised at once. kv_memory, prefix_memory: bytes for the keys and
        values of running sequences (None: no limit) and of remembered ones (0: none are remembered).
        See Runner for the others.
        """
        self.config = model.config
        self.runner = Runner(model, deterministic=deterministic, kv_type=kv_type, exact=exact, mixed=mixed)
        # Contexts of some families can only be cut at multiples of a block.
        self.block = block_of(model.config) or 1
        self.scheduler = Scheduler(max_rows, kv_memory, self.block)
        self.prefixes = PrefixCache(prefix_memory, self.runner.new_cache)
        self.max_context = min(
            max_context or self.config.max_position_embeddings, self.config.max_position_embeddings
        )
        self._ids = itertools.count()
        self._events: list[Event] = []

    def step(self) -> list[Event]:
        """One step: admits what fits, encodes what is new, denoises every live canvas
        once, commits what is done.

        Encoding and denoising are one pass of the model over all rows. A canvas whose context is completed
        in this step, by the last of a prompt or by the canvas committed before it, takes its first step in
        the same pass: in each layer the context's keys and values are there before the canvas asks for
        them. `Scheduler.rows` says how much is encoded in a step. What the host must know of all canvases
        of a pass is read at once.
        """
        for sequence in self.scheduler.admit():
            try:
                self._open(sequence)
            except Exception as error:  # as a rule there is no memory for its keys and values
                self._fail(sequence, error)
        for rows in self.runner.passes(self.scheduler.rows()):
            for row in self._run(rows):
                self._report(row.sequence)
        for sequence in self.scheduler.denoising():
            if sequence.progress.stop is not None:
                self._commit(sequence)
        return self.take_events()

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id. Raises UsageError (PromptTooLong) for what can never run."""
        params = bounded(check_params(request.params), self.max_context)
        params = replace(params, canvas_length=canvas_length(params, self.config))
        if params.seed is None:
            # 32 bits: readers of JSON that know only doubles round what is above 2^53.
            params = replace(params, seed=secrets.randbits(32))
        constraint = request.constraint
        if constraint is not None and self.block > 1:
            raise UsageError(
                f"constraints commit parts of canvases, which models of type {self.config.family} cannot "
                "continue",
                "constraint",
            )
        if constraint is not None:
            params = replace(params, settle_steps=0)  # what is sent early could not be projected any more
        self._check_tokens(request)
        check_rules(request, params.min_new_tokens, self.config)
        check_marks(request, self.config.vocab_size)
        check_mask(request, params)
        lead = len(request.tokens) % self.block
        places = answer_places(len(request.tokens), lead, params, self.max_context)
        self._check_given(request, places)
        symbols = self.prefixes.symbols_of(request.tokens, request.content_keys)
        state = constraint.start() if constraint is not None else None
        limit = min(params.max_new_tokens, places)
        if constraint is not None and constraint.shortest > limit:
            raise UsageError(
                f"the shortest valid answer has {constraint.shortest} tokens, and there is room for {limit}: "
                "raise max_new_tokens",
                "max_new_tokens",
            )
        sequence = Sequence(next(self._ids), request, params, limit, lead, symbols, constraint_state=state)
        sequence.shared = request.shared // self.block * self.block
        sequence.marks = guarded(request, self.block)
        if sequence.marks is not None:
            sequence.turn = TurnState.of_prompt(request.tokens, sequence.marks)
        sequence.kv_bytes = self.runner.cache_bytes(expected_tokens(sequence))
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

    def take_events(self) -> list[Event]:
        """What has happened since events were last taken, as `step` returns it."""
        events, self._events = self._events, []
        return events

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
        vocab = self.config.vocab_size
        placed = (*request.given.values(), *request.draft.values())
        if not all(0 <= token < vocab for token in (*request.tokens, *placed)):
            raise UsageError(f"a token id is outside the vocabulary of {vocab}", "messages")
        if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
            raise UsageError(
                f"top_logprobs = {request.top_logprobs} is not in 0 .. {MAX_TOP_LOGPROBS}", "top_logprobs"
            )
        if not 0 <= request.draft_noise <= 1:
            raise UsageError(f"draft_noise = {request.draft_noise} is out of range: 0 to 1", "draft_noise")
        if not all(0 <= index < len(request.tokens) for index in request.content_keys):
            raise UsageError("a content key belongs to no token of the prompt", "content_keys")
        if not 0 <= request.shared < len(request.tokens):
            raise UsageError(
                f"shared = {request.shared} is out of range: 0 to {len(request.tokens) - 1}", "shared"
            )
        check_watched(request.watched, vocab)

    def _check_given(self, request: Request, places: int) -> None:
        for place in (*request.given, *request.allowed, *request.watched):
            if not 0 <= place < places:
                raise UsageError(
                    f"the given place {place} is outside the {places} places of canvases that max_new_tokens "
                    "and "
                    "the context allow",
                    "given",
                )

    def _open(self, sequence: Sequence) -> None:
        """Gives an admitted sequence its cache, with as much of its prompt as is remembered."""
        sequence.clock.mark("admitted")
        tokens = sequence.request.tokens
        identity, expected = sequence.request.identity, expected_tokens(sequence)
        live = [
            (s.encoded, s.cache)
            for s in self.scheduler.running
            if s.cache is not None and s.request.identity == identity
        ]
        symbols, whole = sequence.symbols, len(tokens) - sequence.lead
        if self.block > 1:  # its canvas may begin without anything to encode: the last block is taken, too
            symbols = (*symbols[:whole], symbols[-1])
        if sequence.shared:
            symbols = symbols[: sequence.shared + 1]
        known = self.prefixes.take(symbols, live, expected, identity, self.block, sequence.shared)
        sequence.cache = known or self.runner.new_cache(expected)
        sequence.cached_tokens = sequence.cache.length
        sequence.encoded = list(sequence.symbols[: sequence.cached_tokens])
        sequence.pending = list(tokens[sequence.cached_tokens : whole])
        sequence.row_params = RowParams.of(
            sequence.params, sequence.request.eos_token_ids, self.runner.device
        )
        sequence.rules = RowRules.of(
            sequence.request, sequence.params.min_new_tokens, self.config, self.runner.device
        )
        self._start_canvas(sequence)

    def _start_canvas(self, sequence: Sequence) -> None:
        """Lays out the next canvas, to be denoised as soon as nothing is left to encode before it."""
        sequence.canvas = next_canvas(sequence, self.config, self.runner.device)
        sequence.rules = canvas_rules(sequence, self.config, self.runner.device)
        sequence.progress, sequence.sent, sequence.state = Progress(), 0, State.ENCODE

    def _run(self, rows: list[Row]) -> list[Row]:
        """One pass; returns the rows whose canvases took a step. If it fails, each row runs by itself, so
        that only those fail that cannot run.
        """
        rows = [row for row in rows if row.sequence.state is not State.FINISHED]
        if not rows:
            return []
        begin = time.perf_counter()
        try:
            moved = self._denoise(rows)
        except Exception as error:
            if len(rows) == 1:
                self._fail(rows[0].sequence, error)
                return []
            log.warning("a pass over %d rows failed, now each runs by itself: %r", len(rows), error)
        else:
            self._count_in(rows, time.perf_counter() - begin)
            return moved
        # Outside the handler, where what the failed pass had in memory is free.
        return [moved for row in rows for moved in self._run([row])]

    @torch.inference_mode()
    def _denoise(self, rows: list[Row]) -> list[Row]:
        """Runs the model and moves the canvases on; returns their rows. If it raises,
        no sequence has changed."""
        said = self.runner.run(rows)
        if not said:
            return []
        moved = [self._move(one) for one in said]
        denoised = [row for one in said for row in one.rows]
        for row, watched in zip(denoised, (w for one in said for w in one.watched), strict=True):
            row.sequence.watched = watched
        each = [canvas.row(index) for canvas in moved for index in range(len(canvas))]
        for row, canvas, known in zip(denoised, each, progress(*moved), strict=True):
            row.sequence.canvas, row.sequence.progress = canvas, known
        return denoised

    def _move(self, said: Denoised) -> Canvas:
        params = RowParams.join([_row_params(row.sequence) for row in said.rows])
        moved = advance(said.canvas, said.prediction, params, self.config.vocab_size, self.config.facts)
        return settle(moved, params)

    @torch.inference_mode()
    def _count_in(self, rows: list[Row], seconds: float) -> None:
        """What a pass has encoded is context now."""
        for row in rows:
            row.sequence.advance(row.count)
            if not row.sequence.pending:
                row.sequence.state = State.DENOISE
            row.sequence.clock.share(seconds, row.count, row.sequence.places if row.denoise else 0)

    def _report(self, sequence: Sequence) -> None:
        """Tells what a step has made of a canvas, as far as anybody wants to know before it is committed."""
        sequence.clock.mark("first_draft")
        if sequence.request.drafts:
            self._events.append(draft_event(sequence))
        settled = sequence.progress.settled - sequence.first_place
        if settled > sequence.sent:
            draft = sequence.draft()
            if holds_back(sequence, draft[:settled]):
                return
            sent, sequence.sent = sequence.sent, settled
            if early := keep(sequence, draft).tokens[sent:settled]:
                self._events.append(Settled(sequence.id, len(sequence.reports), tuple(early)))

    def _commit(self, sequence: Sequence) -> None:
        """The canvas becomes context of the next, or ends the answer."""
        try:
            committed, kept = standing(sequence)
        except Exception as error:
            self._fail(sequence, error)
            return
        sequence.constraint_state = committed.state
        sequence.take(kept.tokens)
        note(sequence, kept)
        ended = kept.ended or (committed.ended and len(kept.tokens) == len(committed.tokens))
        goes_on = sequence.room > 0 and self._fits_canvas(sequence) and not _is_stuck(sequence)
        added = [] if ended or goes_on else rest(sequence)
        sequence.output += added
        places = [*kept.places(committed.places), *[None] * len(added)]
        self._events.append(committed_event(sequence, kept.tokens + added, places))
        if ended or added:
            self._finish(sequence, "stop")
        elif not goes_on:
            self._finish(sequence, "length")
        else:
            if kept.retry and sequence.marks is not None:
                place, blank = len(sequence.reports) * sequence.places, sequence.marks.blank
                sequence.rules = speaking(
                    sequence.rules, sequence.request, place, blank, self.config, self.runner.device
                )
            lead = () if len(sequence.reports) > 1 else prompt_end(sequence)
            sequence.pending = [*lead, *kept.tokens]
            self._start_canvas(sequence)

    def _fits_canvas(self, sequence: Sequence) -> bool:
        """Whether the context has places for one more canvas."""
        context = len(sequence.request.tokens) + len(sequence.output)
        return context + sequence.places <= self.max_context

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
                notes=sequence.all_notes,
            )
        )

    def _release(self, sequence: Sequence) -> None:
        """Hands the encoded context to the prefix cache."""
        if sequence.cache is not None and sequence.encoded:
            self.prefixes.put(tuple(sequence.encoded), sequence.cache, sequence.request.identity)
        sequence.cache = sequence.canvas = None

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Ends a sequence with an error; the engine goes on."""
        known = _known(error)
        known.__cause__ = error if known is not error else None
        self.scheduler.remove(sequence)
        sequence.cache = sequence.canvas = None
        self._events.append(Failed(sequence.id, known))


def _known(error: Exception) -> CanvasError:
    """An error as one that callers expect. Torch tells of memory that it cannot have in a RuntimeError."""
    if isinstance(error, CanvasError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return OutOfMemory(f"a step does not fit in memory: shorten the request, or run fewer ({error})")
    return EngineFailure(f"{type(error).__name__}: {error}")


def _is_stuck(sequence: Sequence) -> bool:
    return sequence.repetition is not None and sequence.params.stop_on_repetition


def _row_params(sequence: Sequence) -> RowParams:
    assert sequence.row_params is not None
    return sequence.row_params


__all__ = ["Engine"]
