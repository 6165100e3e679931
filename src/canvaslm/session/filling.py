"""Holes filled, canvas by canvas: which requests an engine gets, and what is made of their answers.

    plan = FillPlan(...)
    rounds = plan.rounds()
    asked = next(rounds)
    while True:                                     # until StopIteration, whose value is the `Filled`
        outcomes = ...                              # run asked.requests together
        asked = rounds.send(outcomes)

Whoever runs engines drives it so: the session, and the server's bridge.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..constrain.holes import (
    ANCHOR,
    HoleSpan,
    PlacedHoles,
    TokenBits,
    Window,
    lay_out,
    longest,
    window,
)
from ..constrain.infill import (
    Lengths,
    PlaceLogprobs,
    close,
    left_seam,
    lengths_by_score,
    misfit,
    overshot,
)
from ..text.stop import StopStrings
from ..types import (
    CanvasReport,
    Draft,
    Filled,
    Finished,
    FinishReason,
    Note,
    Request,
    Timings,
    Usage,
)
from .rounds import Begun, FillTask, Machine, Outcome, Round
from .seams import bits_of
from .template import MOST_HOLES
from .token_template import token_template

# The most probable tokens of each place that are named for judging lengths; an engine names no more.
NAMED = 20
# Lengths whose scores are this near to the best, in nats, are all tried, but no more than so many.
MARGIN, CANDIDATES = 6.0, 4
# Nats a place by which given text may be less likely than what its places say: beyond, the hole's text is
# taken to go on behind the canvas. Measured, docs/log.md.
MISFIT = 1.0
_SEEDS = 2**63


@dataclass(frozen=True)
class _Look:
    """What a canvas says of where holes end. `ranked`: their lengths, best first; `before`: tokens of the
    text before that belong to the first; `fits`: the text behind them stands somewhere on it; `cut`: there is
    one hole, which would go on where it has to end."""

    ranked: list[Lengths]
    before: int
    reading: PlaceLogprobs
    fits: bool
    cut: bool = False


class FillPlan:
    """One text on its way. `rounds` is to be run once."""

    def __init__(self, machine: Machine, task: FillTask) -> None:
        """Raises UsageError for what cannot be filled."""
        self._machine, self._task = machine, task
        task.template.check()
        StopStrings([] if task.stop is None else task.stop)
        self._given = [machine.seams.read(text) for text in task.template.given]
        self._tokens = token_template(machine, task, self._given)
        self._limits = [hole.most or task.params.max_new_tokens for hole in self._tokens.holes]
        self._done: list[int] = []  # tokens of the text so far, behind which the next hole stands
        self._begun = Begun()
        self._holes: list[str] = []
        self._layouts: tuple[PlacedHoles, ...] = ()
        self._seed = task.params.seed or 0
        self._notes: list[Note] = []
        self._ends: list[Finished] = []
        self._reports: list[CanvasReport] = []
        self._written = 0

    @property
    def seed(self) -> int:
        return self._seed

    def rounds(self) -> Generator[Round, Sequence[Outcome], Filled]:
        """The rounds, one after the other, each to be answered by the outcomes of its requests."""
        began = time.perf_counter()
        self._done += self._tokens.given[0]
        while len(self._holes) < len(self._tokens.holes):
            shown, context = self._window()
            if shown.open:
                yield from self._fill_end(shown, context)
            else:
                yield from self._fill_between(shown, context)
        return self._filled(time.perf_counter() - began)

    def draft_holes(self, event: Draft) -> tuple[str, ...]:
        """All holes as they stand after a step of the first request of a round; what comes later is empty."""
        if not self._layouts:
            return ("",) * len(self._tokens.holes)
        numbered = enumerate(self._layouts[0].spans, len(self._holes))
        holes = [self._text(event.tokens[s.start : s.stop], n, s) for n, s in numbered]
        holes = [*self._holes, *holes][: len(self._tokens.holes)]
        return (*holes, *[""] * (len(self._tokens.holes) - len(holes)))

    def whole(self, holes: tuple[str, ...]) -> str:
        """The text with these in its holes."""
        return self._task.template.whole(holes)

    # -- one canvas after the other --------------------------------------------------------------------------

    def _window(self, *, alone: bool = False) -> tuple[Window, tuple[int, ...]]:
        """What the next canvas shows, and the tokens before it. alone: one hole and no other."""
        block, prompt, so_far = self._machine.block, self._task.prompt, self._so_far
        # Of a hole that has begun, what is written is context, as when the model writes it all.
        begun = bool(self._begun.canvases)
        before = 0 if begun else len(so_far)
        shown = window(self._tokens, len(self._holes), before, self._machine.places, alone=alone or begun)
        cut = len(so_far) - shown.left
        more = (len(prompt) + cut) % block if cut else 0
        shown = replace(shown, left=shown.left + min(more, cut))
        return shown, (*prompt, *so_far[: len(so_far) - shown.left])

    @property
    def _so_far(self) -> list[int]:
        """The tokens of the text up to the hole's end, or to what there is of it."""
        begun = self._begun
        return [*self._done[: len(self._done) - begun.before], *begun.tokens]

    def _fill_end(self, shown: Window, context: tuple[int, ...]) -> Generator[Round, Sequence[Outcome], None]:
        """The last hole, with nothing behind it: the model says where it ends, on this canvas or a later."""
        number, left = len(self._holes), self._left(shown)
        hole = self._tokens.holes[number]
        most, before = self._limits[number], 0
        if hole.before:
            reading = yield from self._read(shown, context)
            before = left_seam(hole, left, reading)
        start = shown.left - before
        span = HoleSpan(start, shown.left + most, before)
        allowed = {p: b for p, b in hole.allowed(span).items() if before and p == start}
        layout = PlacedHoles(dict(enumerate(left[:start])), allowed, (span,))
        request = self._request(context, layout, span.stop, self._machine.ends)
        request = replace(request, draft=self._draft(layout))
        (outcome,) = yield self._round((request,), (layout,))
        self._keep(outcome)
        if outcome.finished.reason == "length":
            self._tell_cut(number)
        self._take(outcome.tokens[start:], number, span)

    def _fill_between(
        self, shown: Window, context: tuple[int, ...]
    ) -> Generator[Round, Sequence[Outcome], None]:
        """Holes with a text behind the last, or a canvas full of the first, which goes on."""
        look = yield from self._look(shown, context)
        if not look.fits and self._has_more(shown) and shown.last - shown.first > 1:
            shown, context = self._window(alone=True)
            look = yield from self._look(shown, context)
        if self._ended_before(shown, look):
            return
        if not look.fits and shown.last - shown.first == 1:
            seen = yield from self._fill_whole(shown, context, look)
            if seen is None:
                return
            look = seen
        yield from self._fill_parts(shown, context, look)

    def _ended_before(self, shown: Window, look: _Look) -> bool:
        """Takes a hole that has begun, if the canvas before had its end and the start of the text behind."""
        written, number = self._begun.tokens, shown.first
        over, score = overshot(written, shown, look.reading, self._machine.ends, ANCHOR)
        if not over or score <= look.ranked[0].score:
            return False
        self._begun = replace(self._begun, tokens=written[: len(written) - over])
        self._written -= over
        self._take((), number, HoleSpan(0, 0))
        return True

    def _has_more(self, shown: Window) -> bool:
        """Whether a hole may have more tokens than there are places for it."""
        return any(self._most(n) > shown.places - shown.left for n in range(shown.first, shown.last))

    def _fill_whole(
        self, shown: Window, context: tuple[int, ...], look: _Look
    ) -> Generator[Round, Sequence[Outcome], _Look | None]:
        """A canvas that is all hole. It is kept if it ends nowhere, does not come to the text behind the hole
        and the hole may have more; otherwise nothing is, and the answer is how long the hole may be."""
        number, start = shown.first, shown.left - look.before
        span = HoleSpan(start, shown.places, look.before)
        hole = replace(self._tokens.holes[number], between=self._text_or_end)
        layout = PlacedHoles(dict(enumerate(self._left(shown)[:start])), hole.allowed(span), (span,))
        request = self._request(context, layout, shown.places)
        request = replace(request, draft=self._draft(layout), top_logprobs=NAMED)
        (outcome,) = yield self._round((request,), (layout,))
        again = self._judged(shown, PlaceLogprobs(outcome.named, self._machine.vocab_size), look.before)
        if again.fits:
            return again
        tokens = outcome.tokens[start:]
        if not self._has_more(shown):
            return replace(look, cut=self._machine.ends_in(tokens[: self._most(number)]) is None)
        if self._machine.ends_in(tokens) is not None:
            return look
        self._keep(outcome)
        self._begin(tokens, number, span)
        return None

    def _fill_parts(
        self, shown: Window, context: tuple[int, ...], look: _Look
    ) -> Generator[Round, Sequence[Outcome], None]:
        """All of the canvas: holes where they are likeliest, the texts around them given."""
        left = self._left(shown)
        candidates = self._candidates(shown, look)
        layouts = [lay_out(self._tokens, shown, left, c.spans, self._machine.end) for c in candidates]
        requests = [
            replace(self._request(context, layout, shown.places), draft=self._draft(layout))
            for layout in layouts
        ]
        if len(requests) > 1:
            requests = [replace(request, top_logprobs=NAMED) for request in requests]
        outcomes = yield self._round(tuple(requests), tuple(layouts))
        best = max(range(len(outcomes)), key=lambda i: self._worth(outcomes[i])) if len(outcomes) > 1 else 0
        self._keep(outcomes[best])
        for number, span in enumerate(layouts[best].spans, shown.first):
            if look.cut or (not look.fits and span.own >= self._most(number)):
                self._tell_cut(number)
            self._take(outcomes[best].tokens[span.start : span.stop], number, span)

    def _look(self, shown: Window, context: tuple[int, ...]) -> Generator[Round, Sequence[Outcome], _Look]:
        """By one step over a canvas that knows the text before the first hole."""
        reading = yield from self._read(shown, context)
        before = left_seam(self._tokens.holes[shown.first], self._left(shown), reading)
        return self._judged(shown, reading, before)

    def _judged(self, shown: Window, reading: PlaceLogprobs, before: int) -> _Look:
        ranked = lengths_by_score(self._tokens, shown, reading, self._machine.ends, ANCHOR, before)
        if not ranked:  # what the seam would take away from the canvas is not there
            before = 0
            ranked = lengths_by_score(self._tokens, shown, reading, self._machine.ends, ANCHOR)
        return _Look(ranked, before, reading, misfit(ranked[0], shown, reading) <= MISFIT)

    def _candidates(self, shown: Window, look: _Look) -> list[Lengths]:
        """The lengths to try. A hole that would go on gets all it may have."""
        if look.cut:
            start = shown.left - look.before
            stop = start + self._most(shown.first) + bool(look.before)
            return [Lengths((HoleSpan(start, stop, look.before),), look.ranked[0].score)]
        guessed = [each for each in look.ranked if self._is_guessed(each.spans)]
        others = [each for each in close(look.ranked, MARGIN, CANDIDATES) if each not in guessed]
        return [*guessed, *others][:CANDIDATES]

    def _read(
        self, shown: Window, context: tuple[int, ...]
    ) -> Generator[Round, Sequence[Outcome], PlaceLogprobs]:
        """What one step says of every place, of the text before the hole all but what may belong to that."""
        known = max(0, shown.left - self._tokens.holes[shown.first].deepest)
        layout = PlacedHoles(dict(enumerate(self._left(shown)[:known])), {}, ())
        request = self._request(context, layout, shown.places)
        request = replace(
            request, params=replace(request.params, max_denoising_steps=1), top_logprobs=NAMED, drafts=False
        )
        (outcome,) = yield self._round((request,), ())
        return PlaceLogprobs(outcome.named, self._machine.vocab_size)

    def _is_guessed(self, spans: tuple[HoleSpan, ...]) -> bool:
        """Whether all holes have a guess of this length."""
        numbered = list(enumerate(spans, len(self._holes)))
        return all(
            self._task.template.holes[n].draft is not None and len(self._guess(n, s)) == s.length
            for n, s in numbered
        )

    def _worth(self, outcome: Outcome) -> float:
        """How well a canvas fits together: the mean log-probability of all its places, given ones too."""
        return PlaceLogprobs(outcome.named, self._machine.vocab_size).mean(dict(enumerate(outcome.tokens)))

    # -- requests and what comes of them ---------------------------------------------------------------------

    def _round(self, requests: tuple[Request, ...], layouts: tuple[PlacedHoles, ...]) -> Round:
        self._layouts = layouts
        return Round(requests, layouts)

    def _left(self, shown: Window) -> list[int]:
        so_far = self._so_far
        return so_far[len(so_far) - shown.left :]

    def _request(
        self, context: tuple[int, ...], layout: PlacedHoles, count: int, ends: tuple[int, ...] = ()
    ) -> Request:
        """A canvas with what is given on it. Without `ends` all its places come back."""
        seed = (self._seed + len(self._holes) + MOST_HOLES * self._begun.canvases) % _SEEDS
        params = replace(self._task.params, seed=seed, max_new_tokens=count, settle_steps=0, min_new_tokens=0)
        return Request(
            context,
            params,
            ends,
            given=layout.given,
            allowed=layout.allowed,
            draft_noise=self._task.draft_noise,
            drafts=self._task.drafts,
            adapters=self._task.adapters,
        )

    def _draft(self, layout: PlacedHoles) -> dict[int, int]:
        """Tokens of the guesses that came with holes, at their places."""
        made: dict[int, int] = {}
        for number, span in enumerate(layout.spans, len(self._holes)):
            if self._task.template.holes[number].draft is not None:
                made |= dict(zip(range(span.start, span.stop), self._guess(number, span), strict=False))
        return made

    def _guess(self, number: int, span: HoleSpan) -> list[int]:
        """The tokens of a hole's guess, with what of the given text belongs to the hole; of one that has
        begun what is left."""
        tokens = self._encoded(number, span, self._task.template.holes[number].draft or "")
        return tokens[len(self._begun_of(number).tokens) :]

    def _encoded(self, number: int, span: HoleSpan, text: str) -> list[int]:
        before, behind = self._edges(number, span)
        return self._machine.tokenizer.encode((before + text.encode() + behind).decode("utf-8", "replace"))

    def _edges(self, number: int, span: HoleSpan) -> tuple[bytes, bytes]:
        """What of the texts around a hole belongs to it."""
        before = span.before or self._begun_of(number).before
        return self._given[number].end(before), self._given[number + 1].start(span.behind)

    def _begun_of(self, number: int) -> Begun:
        return self._begun if number == len(self._holes) else Begun()

    def _keep(self, outcome: Outcome) -> None:
        self._ends.append(outcome.finished)
        self._reports += outcome.finished.canvases

    def _begin(self, tokens: Sequence[int], number: int, span: HoleSpan) -> None:
        """A canvas full of a hole, which goes on unless a stop string has ended it."""
        begun, hole = self._begun, self._tokens.holes[number]
        most = self._most(number) - HoleSpan(0, len(tokens), span.before).own
        self._begun = Begun([*begun.tokens, *tokens], span.before or begun.before, begun.canvases + 1)
        going_on = replace(hole, most=most, wish=min(most, self._machine.places // 4), before=(), joined={})
        holes = self._tokens.holes
        self._tokens = replace(self._tokens, holes=(*holes[:number], going_on, *holes[number + 1 :]))
        self._written += len(tokens)
        if self._said((), number, HoleSpan(0, 0))[1]:
            self._take((), number, HoleSpan(0, 0))

    def _take(self, tokens: Sequence[int], number: int, span: HoleSpan) -> None:
        """A hole's last tokens: its text is what they all say between the bytes of the texts around it."""
        text, begun = self._text(tokens, number, span), self._begun_of(number)
        self._written += len(tokens)
        tokens = [*begun.tokens, *tokens]
        if self._task.stop is not None:  # what stands behind a stop string is no text
            tokens = self._encoded(number, span, text)
        del self._done[len(self._done) - (span.before or begun.before) :]
        self._done += [t for t in tokens if t not in self._machine.ends]
        self._done += self._tokens.given[number + 1][span.behind :]
        self._holes.append(text)
        self._begun = Begun()

    def _text(self, tokens: Sequence[int], number: int, span: HoleSpan) -> str:
        return self._said(tokens, number, span)[0]

    def _said(self, tokens: Sequence[int], number: int, span: HoleSpan) -> tuple[str, bool]:
        """A hole's text once these tokens stand behind what there is of it, and whether a stop string ended
        it."""
        tokens = [*self._begun_of(number).tokens, *tokens[: self._machine.ends_in(tokens)]]
        before, behind = self._edges(number, span)
        data = self._machine.tokenizer.decode_bytes(tokens).removeprefix(before).removesuffix(behind)
        stops = StopStrings([] if self._task.stop is None else self._task.stop)
        return stops.feed(data.decode("utf-8", "replace")) + stops.close(), stops.matched is not None

    def _tell_cut(self, number: int) -> None:
        """Notes that a hole has all the tokens it may have, and is not at its end."""
        most, template = self._limits[number], self._tokens
        if template.is_open(number) or most < longest(template, number, self._machine.places):
            remedy = "its max, or max_new_tokens, allows more"
        else:
            remedy = "with text behind it it may have no more"
        told = f"hole {number + 1} is cut at its limit of {most} tokens: {remedy}"
        self._notes.append(Note("hole_cut", told))

    def _most(self, number: int) -> int:
        """Tokens that a hole with text behind it may still have."""
        most = self._tokens.holes[number].most
        assert most is not None, "a hole with text behind it has a limit"
        return most

    def _filled(self, seconds: float) -> Filled:
        given = sum(map(len, self._tokens.given))
        first = self._ends[0]
        usage = Usage(len(self._task.prompt) + given, self._written, first.usage.cached_tokens)
        timings = Timings(
            seconds,
            first.timings.queued,
            sum(end.timings.encode for end in self._ends),
            sum(end.timings.denoise for end in self._ends),
            first.timings.first_draft,
            seconds,
        )
        holes = tuple(self._holes)
        reason: FinishReason = "length" if self._notes else "stop"
        return Filled(
            self._task.template.whole(holes), holes, reason, usage, timings, self._seed,
            tuple(self._reports), tuple(self._notes),
        )  # fmt: skip

    @cached_property
    def _text_or_end(self) -> TokenBits:
        """All tokens that are text or end an answer."""
        text, ends = self._machine.seams.text, bits_of(self._machine.ends)
        both = int.from_bytes(text, "little") | int.from_bytes(ends, "little")
        return both.to_bytes(max(len(text), len(ends)), "little")


__all__ = ["CANDIDATES", "MARGIN", "MISFIT", "NAMED", "FillPlan"]
