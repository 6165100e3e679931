"""The best document of a grammar that a finished canvas holds, searched with a beam of matchers.

A path takes a token of each place, or passes a place over, or puts bytes in between. llguidance names no
states, so paths whose next-token masks are equal, and that wrote as many quotes, count as one and the better
stays. A good path may be lost by that, but never is an invalid one let through: each has its own matcher.

What is committed can always be completed: the end of it is in hand, as tokens, and fits the room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from .completion import Effort, completion
from .matchers import Matchers, SymbolWalker, allowed, allows, takes, which_follow

WIDTH = 4  # paths kept
MARGIN = 12.0  # nats below the best path beyond which one is dropped
PASS_OVER = 4.0  # nats it costs to leave out a place
PUT_IN = 2.0  # nats it costs to put in a byte
LOSE_GIVEN = 200.0  # nats it costs to leave out a given place: more than any canvas is worth
LONGEST_PUT_IN = 24
# What a canvas may ask of a grammar of price 1, in symbols: noise of 256 places asks 30,000. It is counted,
# so that a canvas says the same on every machine.
READS = 400_000
SEARCH_STEPS = 12_000  # of all searches for ends after one canvas, at price 1
_SEARCHES = 6  # ends searched before the text is cut back
_SEPARATORS = b'",: }]{[\n'  # what may be put in where nothing is forced


@dataclass(frozen=True, eq=False)
class CanvasRows:
    """What a canvas says, for a beam to read. n places, k tokens each."""

    tokens: NDArray[np.int64]  # [n, k], the most probable first
    logprobs: NDArray[np.float64]  # [n, k] nats
    given: tuple[bool, ...]  # [n]: the first token is given, and no other stands there
    floor: NDArray[np.float64]  # [n] nats: what one token that is not among the k has
    ends: frozenset[int]
    tail: NDArray[np.float64]  # [n + 1] nats: that the document has ended before this place

    @classmethod
    def of(
        cls,
        tokens: NDArray[np.int64],
        logprobs: NDArray[np.float64],
        given: Sequence[bool],
        ends: Sequence[int],
        pad: int,
        size: int,
    ) -> CanvasRows:
        """tokens, logprobs: [n, k]; size: tokens of the vocabulary, beyond which a model may have more."""
        n, k = tokens.shape
        strange = tokens >= size
        tokens, logprobs = np.where(strange, pad, tokens), np.where(strange, -np.inf, logprobs)
        left = np.clip(1 - np.exp(logprobs).sum(-1), 1e-12, 1)
        least = np.maximum(logprobs[:, -1], -100.0) if k else np.zeros(n)
        floor = np.minimum(np.log(left / max(1, size - k)), least)
        stop = np.isin(tokens, [*ends, pad])
        rest = np.maximum(np.where(stop, logprobs, -np.inf).max(-1, initial=-np.inf), floor)
        tail = np.concatenate([np.cumsum(rest[::-1])[::-1], [0.0]])
        return cls(tokens, logprobs, tuple(given), floor, frozenset(ends), tail)


@dataclass(frozen=True)
class Found:
    """Tokens to commit, where they come from, and how the document goes on from there."""

    tokens: tuple[int, ...]
    places: tuple[int | None, ...]  # per token; None: put in
    ended: bool  # the end token is the last
    completion: tuple[int, ...] = ()  # where it has not ended: tokens that would complete it


@dataclass(eq=False, slots=True)
class _Path:
    score: float
    matcher: SymbolWalker
    mask: bytes = b""  # computed for paths that are kept
    back: _Path | None = None
    token: int = -1  # -1: none was added
    place: int | None = None
    quotes: int = 0
    length: int = 0

    def line(self) -> Iterator[_Path]:
        """The paths with a token of their own that lead here, the last first."""
        path: _Path | None = self
        while path is not None and path.back is not None:
            if path.token >= 0:
                yield path
            path = path.back


@dataclass(frozen=True, eq=False)
class _Choice:
    score: float
    path: _Path
    kind: str  # "ended", "close": it says it ends here, and something is missing, or "open"
    place: int | None = None  # of the end token
    close: tuple[int, ...] = ()  # what was found to be missing; the score has its price then


@dataclass(eq=False)
class Beam:
    """One canvas's search. `first` is a matcher where the canvas begins, `known` tokens that complete the
    document from there; `room` counts all that may still be committed, here and later."""

    matchers: Matchers
    first: SymbolWalker
    known: tuple[int, ...]
    room: int
    work: Effort
    reads: int = READS  # symbols that the grammar may be asked for, searches aside
    choices: list[_Choice] = field(default_factory=list)

    def best(self, places: CanvasRows) -> Found:
        """What to commit: the best found whose end is in hand."""
        return self._as_it_is(places) or self._searched(places)

    def _as_it_is(self, places: CanvasRows) -> Found | None:
        """The canvas's most probable tokens, where they are a document or the beginning of one."""
        best = places.tokens[:, 0].tolist() if places.tokens.size else []
        stop = next((i for i, token in enumerate(best) if token in places.ends), len(best))
        matcher = self.first.deep_copy()
        if matcher.validate_tokens(best[:stop]) < stop:
            return None
        root = _Path(0.0, self.first.deep_copy())
        path = _extended(self, root, best[:stop], list(range(stop)), 0.0)
        if path is None:
            return None
        if stop == len(best):
            return self._open(path) if best else None
        return self._whole(_Choice(0.0, path, "ended", stop)) if path.matcher.is_accepting() else None

    def _searched(self, places: CanvasRows) -> Found:
        paths = self._walk(places)
        queue = [(-choice.score, index, choice) for index, choice in enumerate(self.choices)]
        heapify(queue)
        searches = 0
        while queue and searches < _SEARCHES:
            _, index, choice = heappop(queue)
            if choice.kind == "close" and not choice.close:
                searches += 1
                if (priced := self._priced(choice)) is not None:
                    heappush(queue, (-priced.score, index, priced))
                continue
            searches += choice.kind == "open"
            found = self._open(choice.path) if choice.kind == "open" else self._whole(choice)
            if found is not None:
                return found
        return self._cut_back(paths)

    def _priced(self, choice: _Choice) -> _Choice | None:
        """A choice that wants closing, with what is missing and its price; None where no end is found."""
        close = self._completion(choice.path)
        if not close:
            return None
        missing = sum(len(self.matchers.tokens[token]) for token in close)
        return replace(choice, close=tuple(close), score=choice.score - PUT_IN * missing)

    def _walk(self, places: CanvasRows) -> list[_Path]:
        """The paths kept after the last place that any came to; choices are collected on the way."""
        root = _Path(0.0, self.first, self.first.deep_copy().compute_bitmask())
        kept = [root]
        end = self.first.asked.symbols + self.reads
        for place in range(len(places.tokens)):
            if self.first.asked.symbols > end:
                break
            offers: list[_Path] = []
            for path in kept:
                self.work.stopped()
                self._end_here(path, places, place)
                offers += _offers(self, path, places, place)
            following = self._keep(offers)
            if not following:
                return kept
            kept = following
        else:
            self.choices += [_Choice(path.score, path, "open") for path in kept]
        return kept

    def _end_here(self, path: _Path, places: CanvasRows, place: int) -> None:
        """Adds the choice to end at a place, where the canvas says so or the document is complete."""
        said = [j for j, token in enumerate(places.tokens[place]) if int(token) in places.ends]
        accepting = path.matcher.is_accepting()
        if not said and not accepting:
            return
        end = float(places.logprobs[place, said[0]] if said else places.floor[place])
        score = path.score + end + float(places.tail[place + 1])
        self.choices.append(
            _Choice(score, path, "ended", place) if accepting else _Choice(score, path, "close", place)
        )

    def _keep(self, offers: list[_Path]) -> list[_Path]:
        """The best of each state, at most WIDTH, with their masks."""
        offers.sort(key=lambda path: -path.score)
        kept: dict[tuple[bytes, int], _Path] = {}
        for path in offers[: 4 * WIDTH]:
            if len(kept) >= WIDTH or (kept and path.score < offers[0].score - MARGIN):
                break
            if path.token >= 0 and not path.mask:
                matcher = path.matcher.deep_copy()
                if not matcher.consume_token(path.token):
                    continue
                path = replace(path, matcher=matcher, mask=matcher.compute_bitmask())
                if matcher.is_error():
                    continue
            kept.setdefault((path.mask, path.quotes), path)
        return list(kept.values())

    def _whole(self, choice: _Choice) -> Found | None:
        """The text of a path, what completes it and the end token; None where that does not fit."""
        path, close = choice.path, choice.close
        if path.length + len(close) + 1 > self.room:
            return None
        tokens, came = _said(path)
        places = (*came, *[None] * len(close), choice.place)
        return Found((*tokens, *close, self.matchers.ends[0]), places, ended=True)

    def _open(self, path: _Path) -> Found | None:
        """The text of a path, if it has some and can be completed later on."""
        if not path.length or path.length + 1 >= self.room:
            return None
        close = self._completion(path)
        if close is None or path.length + len(close) + 1 > self.room:
            return None
        return Found(*_said(path), ended=False, completion=tuple(close))

    def _completion(self, path: _Path) -> list[int] | None:
        walker = self.first.deep_copy()
        if self.work.steps < 0 or not takes(walker, _said(path)[0]):
            return None
        return completion(self.matchers, walker.matcher, self.work, tries=3)

    def _cut_back(self, paths: list[_Path]) -> Found:
        """The longest beginning of the best path, looked for in growing strides, that can be completed in
        the room; the completion in hand where none is found."""
        best = max(paths, key=lambda path: path.score)
        line = list(best.line())
        index, stride = 0, 1
        while index < len(line) and self.work.steps >= 0:
            close = self._completion(line[index])
            found = close is not None and self._whole(_Choice(0.0, line[index], "close", None, tuple(close)))
            if found:
                return found
            index, stride = index + stride, stride * 2
        return self.known_end()

    def completed(self, found: Found) -> Found:
        """What was found, with the end of it."""
        added = (*found.completion, self.matchers.ends[0])
        return Found(found.tokens + added, (*found.places, *[None] * len(added)), ended=True)

    def known_end(self) -> Found:
        """Nothing of the canvas, but the completion in hand: what is left when all else fails."""
        return Found((*self.known, self.matchers.ends[0]), (None,) * (len(self.known) + 1), ended=True)


def searches(price: int) -> int:
    """Steps of the searches for ends after a canvas: a mask costs less than in proportion."""
    return 4 * SEARCH_STEPS // (3 + price)


def _offers(beam: Beam, path: _Path, places: CanvasRows, place: int) -> list[_Path]:
    """What may come of a path at a place, masks not yet computed."""
    tokens, logprobs = places.tokens[place].tolist(), places.logprobs[place].tolist()
    if places.given[place]:
        tokens, logprobs = tokens[:1], logprobs[:1]
    legal = which_follow(path.matcher, tokens, path.mask)
    offers = [
        _with(beam, path, token, place, logprob)
        for token, logprob, follows in zip(tokens, logprobs, legal, strict=True)
        if follows and token not in places.ends
    ]
    best = tokens[0]
    if best in places.ends or not legal[0]:
        loss = LOSE_GIVEN if places.given[place] else PASS_OVER
        offers.append(replace(path, score=path.score - loss, back=path, token=-1, place=None))
        if best not in places.ends:
            offers += _put_in(beam, path, best, place, logprobs[0])
    if not offers or not (any(legal) or places.given[place]):
        offers += _instead(beam, path, place, float(places.floor[place]))
    return offers


def _with(beam: Beam, path: _Path, token: int, place: int | None, gain: float) -> _Path:
    """A path and one token more; the matcher is still that before it."""
    quotes = path.quotes + beam.matchers.tokens[token].count(b'"')
    return _Path(path.score + gain, path.matcher, b"", path, token, place, quotes, path.length + 1)


def _extended(
    beam: Beam, path: _Path, tokens: list[int], places: Sequence[int | None], gain: float
) -> _Path | None:
    """A path and several tokens more, its matcher moved on, or None where they may not follow."""
    matcher = path.matcher.deep_copy()
    if not takes(matcher, tokens):
        return None
    for token, place in zip(tokens, places, strict=True):
        path = _with(beam, path, token, place, 0.0)
        path.matcher = matcher
    path.score += gain
    return path


def _put_in(beam: Beam, path: _Path, token: int, place: int, gain: float) -> list[_Path]:
    """A token before which something must be put in: what is forced, or one byte and what that forces."""
    found = []
    only = _forced(path.matcher)
    starts = [only] if only else [bytes((byte,)) for byte in _SEPARATORS if allows(path.mask, byte)]
    symbols = beam.matchers.symbols_of((token,))
    for start in starts:
        text = start
        if not path.matcher.follow([*text, *symbols]):
            text += _forced(path.matcher, start)
            if text == start or len(text) > LONGEST_PUT_IN or not path.matcher.follow([*text, *symbols]):
                continue
        tokens = beam.matchers.split(text)
        before = _extended(beam, path, tokens, [None] * len(tokens), -PUT_IN * len(text))
        if before is not None:
            found.append(_with(beam, before, token, place, gain))
    return found


def _forced(walker: SymbolWalker, start: bytes = b"") -> bytes:
    """What alone can follow a start, as whole characters; nothing where that is longer than is put in."""
    text = walker.forced(start)
    return text if len(text) <= LONGEST_PUT_IN and text.decode("utf-8", "ignore").encode() == text else b""


def _instead(beam: Beam, path: _Path, place: int, floor: float) -> list[_Path]:
    """A path with a single symbol that may follow in a place none of whose tokens may."""
    symbols = beam.matchers.symbols
    free = symbols[allowed(path.mask, symbols)].tolist()
    chosen = next((byte for byte in _SEPARATORS if byte in free), free[0] if free else -1)
    return [_with(beam, path, beam.matchers.tokens_of([chosen])[0], place, floor)] if chosen >= 0 else []


def _said(path: _Path) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """A path's tokens, and the place that each comes from."""
    line = list(path.line())[::-1]
    return tuple(step.token for step in line), tuple(step.place for step in line)


__all__ = [
    "MARGIN",
    "PASS_OVER",
    "PUT_IN",
    "READS",
    "SEARCH_STEPS",
    "WIDTH",
    "Beam",
    "CanvasRows",
    "Found",
    "searches",
]
