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
from ..errors import UsageError
from ..model import Model
from ..model.masks import block_of
from ..types import (
    Committed,
    Event,
    Failed,
    Finished,
    FinishReason,
    Projection,
    Request,
    Settled,
    TokenRead,
)
from .canvases import answer_places, canvas_params, expected_tokens, next_canvas, prompt_end
from .checks import (
    MAX_TOP_LOGPROBS,
    adapt_for,
    check_memory,
    check_places,
    check_room,
    check_tokens,
    known_error,
)  # fmt: skip
from .commit import committed_event, draft_event, rest
from .guards import Standing, check_marks, guarded, holds_back, keep, note, standing
from .masking import canvas_rules, check_mask
from .reader import check_reader, reader_of
from .rules import RowRules, check_rules, speaking
from .runner import Denoised, Runner
from .scheduler import Row, Scheduler
from .sequence import Sequence, State
from .thoughts import TurnState
from .verdicts import heard_prompt, own_next, reads_of, verdict, watched_next

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
        self._ids, self._events = itertools.count(), list[Event]()

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
            moved = self._run(rows)
            for row in rows:
                if row.read and row.sequence.state is not State.FINISHED:
                    self._heed(row.sequence)
            for row in moved:
                self._report(row.sequence)
        for sequence in self.scheduler.denoising():
            if sequence.progress.stop == "outgrown":
                self._begin_again(sequence)
            elif sequence.progress.stop is not None:
                self._commit(sequence)
        return self.take_events()

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id. Raises UsageError (PromptTooLong) for what can never run."""
        params = bounded(check_params(request.params), self.max_context)
        params = canvas_params(params, request, self.config)
        check_reader(request, params, self.config, MAX_TOP_LOGPROBS)
        if params.seed is None:
            # 32 bits: readers of JSON that know only doubles round what is above 2^53.
            params = replace(params, seed=secrets.randbits(32))
        constraint = request.constraint
        if constraint is not None or request.reads:
            params = replace(params, settle_steps=0)  # what is sent early could not be projected any more
        check_tokens(request, self.config)
        check_rules(request, params.min_new_tokens, self.config)
        check_marks(request, self.config.vocab_size)
        check_mask(request, params)
        adapt_for(request, self.runner.model)
        lead = len(request.tokens) % self.block
        places = answer_places(len(request.tokens), lead, params, self.max_context)
        check_places(request, places)
        symbols = self.prefixes.symbols_of(request.tokens, request.content_keys)
        state = constraint.start() if constraint is not None else None
        limit = min(params.max_new_tokens, places)
        check_room(constraint, limit)
        sequence = Sequence(next(self._ids), request, params, limit, lead, symbols, constraint_state=state)
        sequence.shared = request.shared // self.block * self.block
        sequence.reader = reader_of(request, params)
        sequence.marks = guarded(request, self.block)
        if sequence.marks is not None:
            sequence.turn = TurnState.of_prompt(request.tokens, sequence.marks)
        sequence.kv_bytes = self.runner.kv_bytes(sequence, expected_tokens(sequence))
        check_memory(sequence.kv_bytes, self.scheduler.kv_memory)
        self.scheduler.add(sequence)
        return sequence.id

    def cancel(self, request_id: int) -> None:
        """Ends a request now; its Finished(reason="cancelled") comes with the next step's events."""
        sequence = self.scheduler.find(request_id)
        if sequence is not None:
            if sequence.reader is not None and sequence.reader.unread is not None:
                self._events.append(sequence.reader.unread)  # committed already, but for what is said of it
            self._finish(sequence, "cancelled")

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting or self._events)

    def take_events(self) -> list[Event]:
        """What has happened since events were last taken, as `step` returns it."""
        events, self._events = self._events, []
        return events

    def _open(self, sequence: Sequence) -> None:
        """Gives an admitted sequence its cache, with as much of its prompt as is remembered."""
        sequence.clock.mark("admitted")
        tokens = sequence.request.tokens
        identity, expected = sequence.identity, expected_tokens(sequence)
        others = [s for s in self.scheduler.running if s.identity == identity]
        live = [(s.encoded, s.cache) for s in others if s.cache is not None]
        symbols, whole = sequence.symbols, len(tokens) - sequence.lead
        if self.block > 1:  # its canvas may begin without anything to encode: the last block is taken, too
            symbols = (*symbols[:whole], symbols[-1])
        if sequence.shared:
            symbols = symbols[: sequence.shared + 1]
        if sequence.request.prompt_logprobs is not None:  # what is read must be encoded, with what it follows
            symbols = symbols[: max(1, sequence.request.prompt_first)]
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
        sequence.state = State.ENCODE
        if sequence.is_causal or sequence.request.prompt_only:
            return
        sequence.own = self.runner.new_canvas_keys(sequence)
        sequence.canvas = next_canvas(sequence, self.config, self.runner.device)
        sequence.rules = canvas_rules(sequence, self.config, self.runner.device)
        sequence.progress, sequence.sent = Progress(), 0

    def _begin_again(self, sequence: Sequence) -> None:
        """Nothing of the live canvas stands; the steps that it took are counted with those of the next."""
        sequence.steps_before += sequence.progress.step
        sequence.grown = True
        self._start_canvas(sequence)

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
        made = self.runner.run(rows)
        said = made.denoised
        moved = [self._move(one) for one in said]
        denoised = [row for one in said for row in one.rows]
        for row, watched in zip(denoised, (w for one in said for w in one.watched), strict=True):
            row.sequence.watched = watched
        each = [canvas.row(index) for canvas in moved for index in range(len(canvas))]
        steps = progress(*moved) if moved else []
        computed = [count for one in said for count in one.computed]
        for row, canvas, known, count in zip(denoised, each, steps, computed, strict=True):
            row.sequence.moved(canvas, known, count)
        for row, heard in made.heard:
            assert row.sequence.reader is not None
            row.sequence.reader.heard = heard
        return denoised

    def _move(self, said: Denoised) -> Canvas:
        params = RowParams.join([row.sequence.known_params for row in said.rows])
        moved = advance(said.canvas, said.prediction, params, self.config.vocab_size, self.config.facts)
        return settle(moved, params)

    @torch.inference_mode()
    def _count_in(self, rows: list[Row], seconds: float) -> None:
        """What a pass has encoded is context now."""
        for row in rows:
            if not row.sequence.is_judged:
                row.sequence.advance(row.count)
            if row.denoise and not row.sequence.pending:
                row.sequence.state = State.DENOISE
            row.sequence.clock.share(seconds, row.count, row.sequence.stepped if row.denoise else 0)

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
        reader = sequence.reader
        try:
            committed, kept = standing(sequence)
        except Exception as error:
            if reader is None or reader.before_again is None or not isinstance(error, UsageError):
                self._fail(sequence, error)
                return
            # The reader's own token is none that the constraint can have: what it had made stands.
            committed, kept = reader.before_again
            self._take(sequence, committed, kept, kept.tokens)
            return
        if reader is not None and sequence.params.verify != "off" and kept.tokens:
            reader.judged, sequence.pending, sequence.state = (committed, kept), list(kept.tokens), State.READ
            return
        lead = prompt_end(sequence) if not sequence.reports else ()
        self._take(sequence, committed, kept, [*lead, *kept.tokens])

    def _take(
        self, sequence: Sequence, committed: Projection, kept: Standing, pending: list[int],
        reads: tuple[TokenRead, ...] | None = None,
    ) -> None:  # fmt: skip
        """Commits what stands of a canvas. pending: what of it is yet to be encoded, if the answer goes on.
        reads: what the causal reader says of it, where that is known."""
        sequence.constraint_state = committed.state
        sequence.take(kept.tokens)
        note(sequence, kept)
        ended = kept.ended or (committed.ended and len(kept.tokens) == len(committed.tokens))
        goes_on = sequence.room > 0 and self._fits_canvas(sequence) and not sequence.is_stuck
        added = [] if ended or goes_on else rest(sequence)
        sequence.output += added
        places = [*kept.places(committed.places), *[None] * len(added)]
        event = committed_event(sequence, kept.tokens + added, places, reads)
        ending: FinishReason | None = "stop" if ended or added else None if goes_on else "length"
        if sequence.request.reads and reads is None and event.tokens:
            self._read_later(sequence, event, ending)
        else:
            self._events.append(event)
            if ending is not None:
                self._finish(sequence, ending)
        if ending is None:
            self._go_on(sequence, kept, pending)

    def _go_on(self, sequence: Sequence, kept: Standing, pending: list[int]) -> None:
        """Begins the next canvas."""
        if kept.retry:
            self._must_speak(sequence)
        sequence.pending = pending
        self._start_canvas(sequence)

    def _must_speak(self, sequence: Sequence) -> None:
        """The next token neither ends the answer nor says nothing."""
        if sequence.marks is not None:
            sequence.rules = speaking(
                sequence.rules, sequence.request, sequence.start, sequence.marks.blank, self.config,
                self.runner.device,
            )  # fmt: skip

    def _read_later(self, sequence: Sequence, event: Committed, ending: FinishReason | None) -> None:
        """An event waits for what the causal reader says of its tokens, which are encoded next: for the next
        canvas, or, at the answer's end, for this alone."""
        assert sequence.reader is not None
        sequence.reader.unread, sequence.reader.ending = event, ending
        if ending is not None:
            sequence.pending, sequence.state = list(event.tokens), State.READ

    def _heed(self, sequence: Sequence) -> None:
        """As `_hear`; what fails in it ends this sequence alone."""
        try:
            self._hear(sequence)
        except Exception as error:
            self._fail(sequence, error)

    @torch.inference_mode()
    def _hear(self, sequence: Sequence) -> None:
        """What the causal reader has said of tokens that a pass encoded."""
        reader = sequence.reader
        assert reader is not None and reader.heard is not None
        if reader.judged is not None:
            self._judge(sequence)
            return
        reader.before = reader.heard.states[-1]
        if reader.unread is not None:
            reader.told += reader.heard.reads()
            if sequence.pending:
                return
            self._events.append(replace(reader.unread, reads=tuple(reader.told)))
            reader.unread, reader.told = None, []
            if reader.ending is not None:
                self._finish(sequence, reader.ending)
            return
        if not sequence.reports:
            heard_prompt(sequence)
            if sequence.request.prompt_only and not sequence.pending:
                self._finish(sequence, "stop")
                return
        if sequence.is_causal and not sequence.pending:
            self._write_next(sequence)

    def _judge(self, sequence: Sequence) -> None:
        """A canvas is committed as far as the reader accepts it, with the reader's own token behind that, or
        begun again with both given where no part of a canvas can be committed."""
        reader = sequence.reader
        assert reader is not None and reader.judged is not None
        (committed, kept), reader.judged = reader.judged, None
        reader.reads += 1
        made = verdict(sequence, committed, kept)
        sequence.advance(made.accepted)
        if made.again:
            reader.again, reader.before_again, sequence.pending = made.again, (committed, kept), []
            self._begin_again(sequence)
            return
        reader.before = made.before
        if made.accepted < len(kept.tokens):
            sequence.progress = replace(sequence.progress, stop="refused")
        self._take(sequence, made.committed, made.kept, made.pending, made.reads)

    def _write_next(self, sequence: Sequence) -> None:
        """Causal decoding: the next token."""
        assert sequence.reader is not None
        kept, entropy = own_next(self.runner.model, sequence)
        if kept.retry and not kept.tokens:
            note(sequence, kept)
            self._must_speak(sequence)
            kept, entropy = own_next(self.runner.model, sequence, again=True)
        reads = reads_of(self.runner.model, sequence, kept.tokens)
        sequence.watched = watched_next(self.runner.model, sequence)
        sequence.progress, sequence.reader.reads = Progress(0, "causal", entropy), 1
        made = Projection(tuple(kept.tokens), (None,) * len(kept.tokens))
        self._take(sequence, made, kept, kept.tokens, reads)

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
                prompt_reads=() if sequence.reader is None else tuple(sequence.reader.prompt),
            )
        )

    def _release(self, sequence: Sequence) -> None:
        """Hands the encoded context to the prefix cache."""
        if sequence.cache is not None and sequence.encoded:
            self.prefixes.put(tuple(sequence.encoded), sequence.cache, sequence.identity)
        sequence.cache = sequence.canvas = sequence.own = None

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Ends a sequence with an error; the engine goes on."""
        known = known_error(error)
        known.__cause__ = error if known is not error else None
        self.scheduler.remove(sequence)
        sequence.cache = sequence.canvas = sequence.own = None
        self._events.append(Failed(sequence.id, known))


__all__ = ["Engine"]
