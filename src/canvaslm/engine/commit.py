"""What of a finished canvas is committed, and the events that tell of canvases."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

from torch import Tensor

from ..diffusion import Canvas, temperature
from ..errors import EngineFailure
from ..types import Committed, Draft, Projection, Readout, TokenRead
from .sequence import Sequence


def project(sequence: Sequence, tokens: list[int]) -> Projection:
    """What a finished canvas commits: what its constraint makes of it, or its draft, `tokens`, as it is.

    Raises EngineFailure if the constraint neither commits a token nor ends the answer:
    there would be no end to it.
    """
    constraint = sequence.request.constraint
    if constraint is None:
        first = sequence.first_place
        return Projection(tuple(tokens), tuple(range(first, first + len(tokens))))
    projection = constraint.project(sequence.constraint_state, _readout(sequence, tokens, constraint.top))
    if len(projection.places) != len(projection.tokens):
        raise EngineFailure(
            f"the constraint names {len(projection.places)} places for {len(projection.tokens)} tokens"
        )
    if not projection.tokens and not projection.ended:
        raise EngineFailure(
            f"the constraint left nothing of canvas {len(sequence.reports)} and did not end the answer: "
            "loosen it"
        )
    return projection


def rest(sequence: Sequence) -> list[int]:
    """What a constraint adds to what is committed where no canvas will follow: the end of the answer, or
    nothing. Asked with a readout that has no places."""
    constraint = sequence.request.constraint
    if constraint is None or not sequence.room:
        return []
    projection = constraint.project(sequence.constraint_state, Readout((), (), (), (), sequence.room))
    fits = projection.ended and len(projection.tokens) <= sequence.room
    return list(projection.tokens) if fits else []


def draft_event(sequence: Sequence) -> Draft:
    """The canvas as it stands after a step, copied from where it is."""
    canvas, params, step = _canvas(sequence), sequence.params, sequence.progress.step
    columns = (canvas.argmax, canvas.entropy, canvas.accepted, canvas.changed)
    tokens, entropy, accepted, changed = (
        tuple(_values(column)[sequence.first_place :]) for column in columns
    )
    given = _given(sequence, len(tokens))
    return Draft(
        sequence.id, len(sequence.reports), step, params.max_denoising_steps,
        temperature(params, step - 1), tokens, entropy, accepted, changed, given=given,
    )  # fmt: skip


def _given(sequence: Sequence, count: int) -> tuple[bool, ...]:
    """Of each place that a draft shows; empty where nothing is given."""
    given = sequence.request.given
    if not given:
        return ()
    first = sequence.start + sequence.first_place
    return tuple(first + place in given for place in range(count))


def committed_event(
    sequence: Sequence,
    kept: list[int],
    places: Items[int | None],
    reads: tuple[TokenRead, ...] | None = None,
) -> Committed:
    """kept: the tokens just committed, all of them; places: where on the canvas each
    (and maybe more) comes from. reads: what the causal reader says of them."""
    index, wanted = len(sequence.reports) - 1, sequence.request.top_logprobs
    event = Committed(
        sequence.id, index, tuple(kept[sequence.sent :]), sequence.reports[-1], watched=_watched(sequence),
        reads=reads or (),
    )  # fmt: skip
    if wanted is None:
        return event
    if sequence.is_causal:
        said = event.reads
        return replace(
            event, logprobs=tuple(r.logprob for r in said), top_logprobs=tuple(r.top for r in said)
        )
    canvas = _canvas(sequence)
    best = list(zip(_values(canvas.argmax), _values(canvas.logprob), strict=True))
    named = _named(canvas)
    placed = list(zip(kept, places, strict=False))
    logprobs = tuple(_logprob(t, best[p], named[p]) if p is not None else 0.0 for t, p in placed)
    if not wanted:
        return replace(event, logprobs=logprobs)
    top = tuple(tuple(named[p][:wanted]) if p is not None else ((t, 0.0),) for t, p in placed)
    return replace(event, logprobs=logprobs, top_logprobs=top)


def _watched(sequence: Sequence) -> dict[int, tuple[float, ...]]:
    """The log-probabilities of watched tokens of the canvas just done, by the answer's places."""
    if sequence.watched is None:
        return {}
    values, sequence.watched = sequence.watched.tolist(), None
    wanted = sequence.watched_from(sequence.start - sequence.places)
    return {p: tuple(row[: len(wanted[p])]) for p, row in zip(wanted, values, strict=True)}


def _logprob(token: int, best: tuple[int, float], named: list[tuple[int, float]]) -> float:
    """A token's log-probability at its place; 0 where it was not the model that chose
    it, as for what is given."""
    return dict([*named, best]).get(token, 0.0)


def _named(canvas: Canvas) -> list[list[tuple[int, float]]]:
    """Per place the most probable tokens and their log-probabilities, as many as were asked for."""
    if canvas.top_tokens is None or canvas.top_logprobs is None:
        return [[] for _ in range(canvas.tokens.shape[-1])]
    rows = zip(_values(canvas.top_tokens), _values(canvas.top_logprobs), strict=True)
    return [list(zip(tokens, values, strict=True)) for tokens, values in rows]


def _readout(sequence: Sequence, tokens: list[int], top: int) -> Readout:
    canvas = _canvas(sequence)
    named = [place[:top] for place in _named(canvas)]
    return Readout(
        tuple(tokens),
        tuple(_values(canvas.frozen)),
        tuple(tuple(token for token, _ in place) for place in named),
        tuple(tuple(value for _, value in place) for place in named),
        sequence.room,
    )


def _values(column: Tensor | None) -> list:  # type: ignore[type-arg]
    """A column of a canvas of one row, copied from where it is."""
    assert column is not None
    values: list = column[0].tolist()  # type: ignore[type-arg]
    return values


def _canvas(sequence: Sequence) -> Canvas:
    assert sequence.canvas is not None
    return sequence.canvas


__all__ = ["committed_event", "draft_event", "project", "rest"]
