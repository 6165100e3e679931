"""Regular constraints: each finished canvas becomes a piece of a text of the language, for any weights.

A canvas that is valid is left alone. Of another one the nearest valid text is committed, with places left out
and tokens put in; where that does not fit the room, or places are given, the most probable one whose tokens
keep their places. Whatever is committed can be completed in the room that is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ..errors import EngineFailure, UsageError
from ..types import Projection, Readout
from .automaton import FAR, compile_expression
from .edit import Prices, best_edit
from .expression import Expression
from .masks import Masks
from .path import Path, best_path
from .reading import CanvasReading
from .steps import Steps
from .vocabulary import Vocabulary

TOP = 16  # of each place's most probable tokens


@dataclass(frozen=True, eq=False)
class Regular:
    """A `Constraint` whose state is a state of its automaton. Made with `regular`."""

    steps: Steps = field(repr=False)
    edits: bool = True  # False: tokens always keep their places
    prices: Prices = field(default_factory=Prices)
    top: int = TOP

    @cached_property
    def shortest(self) -> int:
        """Tokens that a whole answer takes at least, its end included: a smaller budget is refused."""
        return int(self.steps.distance[self.start()]) + 1

    def start(self) -> int:
        """The state before anything is written."""
        return self.steps.automaton.start

    def after(self, state: int, tokens: tuple[int, ...]) -> int:
        """The state behind these tokens; the automaton's number of states where they are not allowed."""
        for token in tokens:
            symbols = self.steps.vocabulary.token_bytes[token]
            state = self.steps.automaton.after(state, symbols) if symbols else self.steps.automaton.states
        return state

    @cached_property
    def _masks(self) -> Masks:
        return Masks(self.steps)

    def masks(self, state: int, given: Sequence[int | None], room: int) -> tuple[bytes | None, ...]:
        """See `types.Masking`."""
        return self._masks.along(state, given, room)

    def project(self, state: int, readout: Readout) -> Projection:
        """What a canvas commits. Raises UsageError where the room or given tokens leave nothing valid."""
        if not readout.tokens:
            return self._rest(state, readout)
        path = self._unchanged(state, readout) or self._nearest(state, readout)
        self._judge(state, path, readout.room)
        return Projection(path.tokens, path.places, path.state, path.ended)

    def _rest(self, state: int, readout: Readout) -> Projection:
        """A readout without places asks for the end, for no canvas will follow: the shortest."""
        need = int(self.steps.distance[state]) + 1
        if need > readout.room:
            raise self._nothing_fits(state, readout)
        idle = np.full((need, 1), self.steps.vocabulary.pad)
        reading = CanvasReading.of(idle, np.full((need, 1), -1.0), self.steps.vocabulary)
        path = best_path(self.steps, reading, state, 0, [])
        if path is None:
            raise self._nothing_fits(state, readout)
        self._judge(state, path, readout.room)
        return Projection(path.tokens, (None,) * len(path.tokens), path.state, path.ended)

    def _unchanged(self, state: int, readout: Readout) -> Path | None:
        """The draft as it is, up to its end, if it is valid and can be completed."""
        ends, tokens = self.steps.vocabulary.ends, readout.tokens[: readout.room]
        stop = next((place for place, token in enumerate(tokens) if token in ends), None)
        last = self.after(state, tokens[:stop])
        if stop is not None:
            fits = bool(self.steps.automaton.ends[last]) and not self._says(readout, stop + 1)
            tokens = tokens[: stop + 1]
        else:
            fits = int(self.steps.distance[last]) + 1 <= readout.room - len(tokens)
        return Path(tokens, tuple(range(len(tokens))), 0.0, stop is not None, last) if fits else None

    def _says(self, readout: Readout, first: int) -> bool:
        """Whether a given token from this place on is part of a text."""
        symbols = self.steps.vocabulary.token_bytes
        return any(
            fixed and len(symbols[token])
            for token, fixed in zip(readout.tokens[first:], readout.given[first:], strict=True)
        )

    def _nearest(self, state: int, readout: Readout) -> Path:
        given = {place: readout.tokens[place] for place, fixed in enumerate(readout.given) if fixed}
        places = min(len(readout.tokens), readout.room)
        path = self._edited(state, readout) if self.edits else None
        if path is not None and (path.ended or 2 * len(path.tokens) >= places):
            return path  # less than half a canvas would need many more of them
        pinned = [(place, token) for place, token in given.items() if place < places]
        path = best_path(self.steps, self._reading(readout, places), state, readout.room - places, pinned)
        if path is None:
            raise self._nothing_fits(state, readout)
        return path

    def _edited(self, state: int, readout: Readout) -> Path | None:
        """The nearest text, behind what is given at the canvas's start; None where more is given."""
        head = next((place for place, fixed in enumerate(readout.given) if not fixed), len(readout.given))
        begin, rest = readout.tokens[:head], _behind(readout, head)
        state = self.after(state, begin)
        if any(rest.given) or not rest.tokens or rest.room < 1 or state == self.steps.automaton.states:
            return None
        path = best_edit(self.steps, self._reading(rest), state, rest.room, self.prices)
        if path is None or not head:
            return path
        places = (*range(head), *(None if place is None else place + head for place in path.places))
        return replace(path, tokens=(*begin, *path.tokens), places=places)

    def _reading(self, readout: Readout, places: int | None = None) -> CanvasReading:
        tokens = np.array(readout.top_tokens[:places], np.int64)
        return CanvasReading.of(tokens, np.array(readout.top_logprobs[:places]), self.steps.vocabulary)

    def _nothing_fits(self, state: int, readout: Readout) -> UsageError:
        need = int(self.steps.distance[state]) + 1
        if need > readout.room:
            return UsageError(
                f"what is guaranteed needs {need} more tokens at least, and {readout.room} are left: "
                "raise max_new_tokens",
                "max_new_tokens",
            )
        return UsageError(
            "the given places contradict what is guaranteed: nothing fits between them", "given"
        )

    def _judge(self, state: int, path: Path, room: int) -> None:
        """Walks what is committed once more, by itself. Raises EngineFailure if it is not valid."""
        automaton, body = self.steps.automaton, path.tokens[:-1] if path.ended else path.tokens
        last = self.after(state, body)
        need = 0 if path.ended else int(self.steps.distance[last]) + 1
        valid = last == path.state and (automaton.ends[last] if path.ended else need < FAR)
        if not valid or len(path.tokens) + need > room:
            raise EngineFailure("a constraint would have committed what it does not allow: this is a defect")


def _behind(readout: Readout, head: int) -> Readout:
    """What a canvas says from a place on."""
    return Readout(
        readout.tokens[head:],
        readout.given[head:],
        readout.top_tokens[head:],
        readout.top_logprobs[head:],
        readout.room - head,
    )


def regular(
    expression: Expression, vocabulary: Vocabulary, param: str | None = None, *, edits: bool = True
) -> Regular:
    """The constraint that answers are texts of an expression's language.

    Raises UsageError, on `param`, where it is too large, empty, or needs a marker that the vocabulary lacks.
    """
    steps = Steps.of(compile_expression(expression, param), vocabulary)
    found = Regular(steps, edits)
    if int(steps.distance[found.start()]) >= FAR:
        raise UsageError("this model has no token for a marker that every valid answer needs", param)
    return found


def marker_symbols(
    vocabulary: Vocabulary, texts: tuple[str, ...], param: str | None = None
) -> tuple[int, ...]:
    """The symbols of control tokens by their texts. Raises UsageError for one that the vocabulary lacks."""
    known: Mapping[str, int] = vocabulary.markers
    missing = [text for text in texts if text not in known]
    if missing:
        raise UsageError(f"this model has no control token {missing[0]}", param)
    return tuple(known[text] for text in texts)


__all__ = ["TOP", "Regular", "marker_symbols", "regular"]
