"""One request on its way through the engine."""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..cache import CanvasKeys, KVCache
from ..diffusion import Canvas, Progress, RowParams
from ..diffusion.params import NO_LIMIT
from ..types import CanvasReport, Note, Params, Request, Timings, TurnMarks, Usage
from .reader import Reader
from .rules import RowRules
from .thoughts import TurnState


class State(enum.Enum):
    WAITING = "waiting"  # not admitted yet
    ENCODE = "encode"  # has tokens to encode: its prompt, or the canvas just committed
    DENOISE = "denoise"  # has a canvas to denoise
    READ = "read"  # has a finished canvas for the causal reader to read
    FINISHED = "finished"


@dataclass
class Sequence:
    """All the engine knows of one request. The engine alone writes to it."""

    id: int
    request: Request
    params: Params  # checked, with the seed in use
    max_tokens: int  # that may be committed: what was asked for, less where the context ends before
    lead: int = 0  # tokens at the prompt's end that stand, given, at the start of the first canvas
    symbols: tuple[int, ...] = ()  # the prompt's tokens as the prefix cache tells them apart
    shared: int = 0  # tokens at the prompt's beginning that are encoded once for all who have them
    state: State = State.WAITING
    cache: KVCache | None = None
    pending: list[int] = field(default_factory=list)  # tokens to encode before the next canvas
    encoded: list[int] = field(default_factory=list)  # symbols whose keys and values are in the cache
    grown: bool = False  # its first canvas has all places, whatever it began with
    steps_before: int = 0  # of the live canvas before it was begun again
    computed: int = 0  # places, in all steps of the live canvas, those before it was begun again included
    stepped: int = 0  # of them in its last step
    own: CanvasKeys | None = None  # where the live canvas keeps its keys and values from step to step
    canvas: Canvas | None = None  # one row; the next one, while there are tokens to encode before it
    progress: Progress = field(default_factory=Progress)  # the live canvas's
    row_params: RowParams | None = None  # `params` where the canvas is
    rules: RowRules | None = None  # which tokens may come, where the canvas is
    reader: Reader | None = None  # None where the causal reader has nothing to do
    constraint_state: Any = None
    marks: TurnMarks | None = None  # None where what a canvas says stands as it is
    turn: TurnState = field(default_factory=TurnState)  # what the output has come to
    pin: int | None = None  # where the live canvas has a thought's closing marker, given by the budget
    mended: dict[int, int] = field(
        default_factory=dict
    )  # {place: token} of the live canvas, given by a repair
    repaired: int = 0  # repairs of the live canvas
    vain: bool = False  # such a marker closed nothing: there are no more
    retried: bool = False  # the answer would have ended empty
    notes: tuple[Note, ...] = ()
    repetition: Note | None = None
    watched: Tensor | None = (
        None  # fp64 [places, tokens], of `watched_from` the start of the live canvas, at its last step
    )
    sent: int = 0  # tokens of the live canvas that were sent early
    output: list[int] = field(default_factory=list)  # committed tokens
    reports: list[CanvasReport] = field(default_factory=list)
    cached_tokens: int = 0
    kv_bytes: int = 0  # what its cache may come to take
    clock: Clock = field(default_factory=lambda: Clock())

    @property
    def identity(self) -> str:
        """Of what its context hangs on besides its tokens: keys and values are shared within one only."""
        uses = ((use.adapter.encode_digest, use.scale) for use in self.request.adapters)
        adapters = [f"{digest}*{scale!r}" for digest, scale in uses if digest]
        return "|".join((self.request.identity, *adapters)) if adapters else self.request.identity

    @property
    def seed(self) -> int:
        assert self.params.seed is not None
        return self.params.seed

    @property
    def places(self) -> int:
        """Of each of its canvases."""
        return self.params.canvas_length

    @property
    def next_places(self) -> int:
        """Of the canvas to lay out next: the first may begin with fewer."""
        first = self.params.first_places
        return first if first and not self.reports and not self.grown else self.places

    @property
    def live_places(self) -> int:
        """Of the canvas that is laid out."""
        return self.places if self.canvas is None else self.canvas.tokens.shape[-1]

    @property
    def budget(self) -> int | None:
        """Tokens that may be thought; None: no limit."""
        budget = self.params.thinking_budget
        return None if budget == NO_LIMIT else budget

    @property
    def known_params(self) -> RowParams:
        """`row_params`, of an admitted sequence."""
        assert self.row_params is not None
        return self.row_params

    @property
    def is_stuck(self) -> bool:
        """Whether it repeats itself and is to end for that."""
        return self.repetition is not None and self.params.stop_on_repetition

    @property
    def is_causal(self) -> bool:
        """Whether it is written token after token, without canvases."""
        return self.params.decoding == "causal"

    @property
    def is_judged(self) -> bool:
        """Whether its pending tokens are a canvas that the causal reader is to judge."""
        return self.reader is not None and self.reader.judged is not None

    @property
    def top_wanted(self) -> int:
        """How many of each place's most probable tokens are asked for."""
        constraint = self.request.constraint
        return max(self.request.top_logprobs or 0, constraint.top if constraint is not None else 0)

    @property
    def room(self) -> int:
        """Tokens that may still be committed."""
        return self.max_tokens - len(self.output)

    @property
    def first_place(self) -> int:
        """The live canvas's first place that belongs to the answer."""
        return 0 if self.reports else self.lead

    @property
    def start(self) -> int:
        """The answer's place that stands first on the live canvas; before the answer's begin where that has
        the prompt's end on it."""
        return len(self.reports) * self.places - self.lead

    def rule_places(self) -> list[int]:
        """Which row of its rules' bits each place of the live canvas has; -1: none."""
        if self.rules is None:
            return [-1] * self.live_places
        return self.rules.places(len(self.output), self.first_place, self.live_places, self.start)

    def watched_from(self, start: int) -> dict[int, tuple[int, ...]]:
        """{place of the answer: tokens} whose log-probabilities are asked for on the canvas that begins with
        the place `start`."""
        here = range(start, start + self.places)
        return {place: tokens for place, tokens in self.request.watched.items() if place in here}

    @property
    def is_before_shared(self) -> bool:
        """Whether it has yet to encode of what it shares."""
        return len(self.encoded) < self.shared

    def draft(self) -> list[int]:
        """The argmax of the answer's places, copied from where it is."""
        assert self.canvas is not None
        tokens: list[int] = self.canvas.argmax[0, self.first_place :].tolist()
        return tokens

    def cut(self, tokens: Iterable[int]) -> tuple[list[int], bool]:
        """Those that belong to the answer, and whether an EOS is among them."""
        kept = list(itertools.islice(tokens, self.room))
        ends = [i for i, token in enumerate(kept) if token in self.request.eos_token_ids]
        return (kept[: ends[0] + 1], True) if ends else (kept, False)

    def take(self, tokens: list[int]) -> None:
        """Commits tokens of the canvas that is finished."""
        self.output += tokens
        self.reports.append(self.report())
        self.steps_before = self.computed = 0
        if self.reader is not None:
            self.reader.begin_canvas()
        self.clock.mark("first_commit")

    @property
    def all_notes(self) -> tuple[Note, ...]:
        """What the reader of the answer is to know."""
        return self.notes if self.repetition is None else (*self.notes, self.repetition)

    def advance(self, count: int) -> None:
        """Counts in the next `count` pending tokens, whose keys and values have been written to the cache."""
        assert self.cache is not None
        self.cache.advance(count)
        start = len(self.encoded)
        # Committed tokens are themselves; only a prompt's may stand for something else.
        known = self.symbols[start : start + count]
        self.encoded += [*known, *self.pending[len(known) : count]]
        del self.pending[:count]

    def moved(self, canvas: Canvas, progress: Progress, computed: int) -> None:
        """The live canvas after a step, of which so many places were computed."""
        self.canvas, self.progress, self.stepped = canvas, progress, computed
        self.computed += computed

    def usage(self) -> Usage:
        return Usage(len(self.request.tokens), len(self.output), self.cached_tokens)

    def report(self) -> CanvasReport:
        """How the canvas just finished went."""
        assert self.progress.stop is not None
        steps, reads = self.steps_before + self.progress.step, 0 if self.reader is None else self.reader.reads
        return CanvasReport(
            steps, self.progress.stop, self.progress.mean_entropy, self.live_places, reads, self.computed
        )


@dataclass
class Clock:
    """Wall-clock times of one request."""

    submitted: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    encode: float = 0.0
    denoise: float = 0.0
    first_draft: float | None = None
    first_commit: float | None = None

    def since(self) -> float:
        return time.perf_counter() - self.submitted

    def mark(self, name: str) -> None:
        """Notes the first time something happens."""
        if getattr(self, name) is None:
            setattr(self, name, self.since())

    def share(self, seconds: float, encoded: int, denoised: int) -> None:
        """Charges a pass over this many tokens of the request: to encoding and
        denoising as they had part in it."""
        self.encode += seconds * encoded / (encoded + denoised)
        self.denoise += seconds * denoised / (encoded + denoised)

    def timings(self) -> Timings:
        queued = self.since() if self.admitted is None else self.admitted
        return Timings(self.since(), queued, self.encode, self.denoise, self.first_draft, self.first_commit)


__all__ = ["Clock", "Sequence", "State"]
