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
from dataclasses import dataclass, field, replace

from ..constrain.holes import (
    ANCHOR,
    HoleSpan,
    PlacedHoles,
    TokenHole,
    TokenTemplate,
    Window,
    lay_out,
    window,
)
from ..constrain.infill import (
    Lengths,
    Named,
    PlaceLogprobs,
    close,
    left_seam,
    lengths_by_score,
)
from ..text.stop import StopStrings
from ..text.tokenizer import Tokenizer
from ..types import (
    DRAFT_NOISE,
    CanvasReport,
    Committed,
    Draft,
    Event,
    Failed,
    Filled,
    Finished,
    FinishReason,
    Params,
    Request,
    Settled,
    Timings,
    Usage,
)
from .seams import Seams
from .template import Template

# The most probable tokens of each place that are named for judging lengths; an engine names no more.
NAMED = 20
# Lengths whose scores are this near to the best, in nats, are all tried, but no more than so many.
MARGIN, CANDIDATES = 6.0, 4
_SEEDS = 2**63


@dataclass(frozen=True)
class Machine:
    """What of a session a plan needs: facts of its model, and its tokens."""

    tokenizer: Tokenizer
    seams: Seams
    canvas_length: int
    block: int
    vocab_size: int
    end: int  # stands behind a text that is whole
    ends: tuple[int, ...]  # end an answer


@dataclass(frozen=True)
class FillTask:
    """What is to be filled: the prompt's tokens, the text, how it is sampled (its seed known)."""

    prompt: tuple[int, ...]
    template: Template
    params: Params
    most: int | None = None  # tokens that each hole may have, by the request
    stop: str | Sequence[str] | None = None
    draft_noise: float = DRAFT_NOISE
    drafts: bool = False


@dataclass(frozen=True)
class Round:
    """Requests to run together. `layouts`: of each where its holes are; none while lengths are looked for."""

    requests: tuple[Request, ...]
    layouts: tuple[PlacedHoles, ...] = ()


@dataclass
class Outcome:
    """What became of one request."""

    tokens: list[int] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    end: Finished | None = None

    def add(self, event: Event) -> None:
        """Takes the next event. Raises what made the request fail."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            self.end = event
        elif isinstance(event, Committed | Settled):
            self.tokens += event.tokens
            if isinstance(event, Committed):
                self.named += event.top_logprobs

    @property
    def finished(self) -> Finished:
        assert self.end is not None, "every request ends in Finished or Failed"
        return self.end


class FillPlan:
    """One text on its way. `rounds` is to be run once."""

    def __init__(self, machine: Machine, task: FillTask) -> None:
        """Raises UsageError for what cannot be filled."""
        self._machine, self._task = machine, task
        task.template.check()
        StopStrings([] if task.stop is None else task.stop)
        self._given = [machine.seams.read(text) for text in task.template.given]
        self._tokens = TokenTemplate(
            tuple(given.tokens for given in self._given),
            tuple(self._hole(i) for i in range(len(task.template.holes))),
            open=not task.template.given[-1],
        )
        self._done: list[int] = []  # tokens of the text so far, behind which the next hole stands
        self._holes: list[str] = []
        self._layouts: tuple[PlacedHoles, ...] = ()
        self._seed = task.params.seed or 0
        self._reason: FinishReason = "stop"
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

    def _window(self) -> tuple[Window, tuple[int, ...]]:
        """What the next canvas shows, and the tokens before it."""
        machine, prompt = self._machine, self._task.prompt
        # Where contexts are whole blocks, the end of the prompt that is none takes places of the canvas.
        places = machine.canvas_length - (machine.block - 1)
        shown = window(self._tokens, len(self._holes), len(self._done), places)
        cut = len(self._done) - shown.left
        more = (len(prompt) + cut) % machine.block if cut else 0
        shown = replace(shown, left=shown.left + min(more, cut))
        return shown, (*prompt, *self._done[: len(self._done) - shown.left])

    def _fill_end(self, shown: Window, context: tuple[int, ...]) -> Generator[Round, Sequence[Outcome], None]:
        """The last hole, with nothing behind it: the model says where it ends, on this canvas or a later."""
        number, left = len(self._holes), self._left(shown)
        hole = self._tokens.holes[number]
        most = self._task.params.max_new_tokens if hole.most is None else hole.most
        before = 0
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
            self._reason = "length"
        self._take(outcome.tokens[start:], number, span)

    def _fill_between(
        self, shown: Window, context: tuple[int, ...]
    ) -> Generator[Round, Sequence[Outcome], None]:
        """Holes with a text behind the last."""
        candidates = yield from self._lengths(shown, context)
        left = self._left(shown)
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
            self._take(outcomes[best].tokens[span.start : span.stop], number, span)

    def _lengths(
        self, shown: Window, context: tuple[int, ...]
    ) -> Generator[Round, Sequence[Outcome], list[Lengths]]:
        """The lengths to try, by one step over a canvas that knows the text before the first hole."""
        reading = yield from self._read(shown, context)
        before = left_seam(self._tokens.holes[shown.first], self._left(shown), reading)
        ranked = lengths_by_score(self._tokens, shown, reading, self._machine.ends, ANCHOR, before)
        if not ranked:  # what the seam would take away from the canvas is not there
            ranked = lengths_by_score(self._tokens, shown, reading, self._machine.ends, ANCHOR)
        guessed = [each for each in ranked if self._is_guessed(each.spans)]
        others = [each for each in close(ranked, MARGIN, CANDIDATES) if each not in guessed]
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
        return self._done[len(self._done) - shown.left :]

    def _request(
        self, context: tuple[int, ...], layout: PlacedHoles, count: int, ends: tuple[int, ...] = ()
    ) -> Request:
        """A canvas with what is given on it. Without `ends` all its places come back."""
        seed = (self._seed + len(self._holes)) % _SEEDS
        params = replace(self._task.params, seed=seed, max_new_tokens=count, settle_steps=0, min_new_tokens=0)
        return Request(
            context,
            params,
            ends,
            given=layout.given,
            allowed=layout.allowed,
            draft_noise=self._task.draft_noise,
            drafts=self._task.drafts,
        )

    def _draft(self, layout: PlacedHoles) -> dict[int, int]:
        """Tokens of the guesses that came with holes, at their places."""
        made: dict[int, int] = {}
        for number, span in enumerate(layout.spans, len(self._holes)):
            if self._task.template.holes[number].draft is not None:
                made |= dict(zip(range(span.start, span.stop), self._guess(number, span), strict=False))
        return made

    def _guess(self, number: int, span: HoleSpan) -> list[int]:
        """The tokens of a hole's guess, with what of the given text belongs to the hole."""
        return self._encoded(number, span, self._task.template.holes[number].draft or "")

    def _encoded(self, number: int, span: HoleSpan, text: str) -> list[int]:
        before, behind = self._edges(number, span)
        return self._machine.tokenizer.encode((before + text.encode() + behind).decode("utf-8", "replace"))

    def _edges(self, number: int, span: HoleSpan) -> tuple[bytes, bytes]:
        """What of the texts around a hole belongs to it."""
        return self._given[number].end(span.before), self._given[number + 1].start(span.behind)

    def _keep(self, outcome: Outcome) -> None:
        self._ends.append(outcome.finished)
        self._reports += outcome.finished.canvases

    def _take(self, tokens: Sequence[int], number: int, span: HoleSpan) -> None:
        """A hole's tokens: its text is what they say between the bytes of the texts around it."""
        self._holes.append(self._text(tokens, number, span))
        self._written += len(tokens)
        if self._task.stop is not None:  # what stands behind a stop string is no text
            tokens = self._encoded(number, span, self._holes[-1])
        del self._done[len(self._done) - span.before :]
        self._done += [t for t in tokens if t not in self._machine.ends]
        self._done += self._tokens.given[number + 1][span.behind :]

    def _text(self, tokens: Sequence[int], number: int, span: HoleSpan) -> str:
        tokenizer = self._machine.tokenizer
        ends = [i for i, token in enumerate(tokens) if token in self._machine.ends]
        data = tokenizer.decode_bytes(tokens[: ends[0]] if ends else tokens)
        before, behind = self._edges(number, span)
        data = data.removeprefix(before).removesuffix(behind)
        stops = StopStrings([] if self._task.stop is None else self._task.stop)
        return stops.feed(data.decode("utf-8", "replace")) + stops.close()

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
        return Filled(
            self._task.template.whole(holes), holes, self._reason, usage, timings, self._seed,
            tuple(self._reports),
        )  # fmt: skip

    def _hole(self, index: int) -> TokenHole:
        """In tokens."""
        seams, hole = self._machine.seams, self._task.template.holes[index]
        before, behind = self._given[index], self._given[index + 1]
        edges = seams.before(before), seams.behind(behind)
        most = self._task.most if hole.most is None else hole.most
        return TokenHole(
            most=most,
            wish=self._wish(index, most),
            between=seams.text,
            before=edges[0],
            behind=edges[1],
            joined=seams.joined(before, behind, edges),
        )

    def _wish(self, index: int, most: int | None) -> int | None:
        """Places to keep free for a hole: as many as it is to have, or its guess has; of the limit of all
        holes no more than a quarter of the canvas."""
        hole = self._task.template.holes[index]
        if hole.draft is not None:
            return max(hole.most or 0, len(self._machine.tokenizer.encode(hole.draft)))
        if hole.most is not None:
            return hole.most
        return None if most is None else min(most, self._machine.canvas_length // 4)


__all__ = ["CANDIDATES", "MARGIN", "NAMED", "FillPlan", "FillTask", "Machine", "Outcome", "Round"]
