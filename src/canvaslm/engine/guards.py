"""What of a finished canvas stands: an answer's limits, the budget of its thought, ends that come too soon.

A thought that stays within its budget is not touched: the answer is that without a budget, token for token.
Where a canvas goes beyond it, nothing of it stands; it is done again with the closing marker *pinned* at the
place, so that the model writes towards it, and the answer follows on the same canvas. (Where the budget is
spent as a canvas begins, the marker is pinned at once.) If a part of the canvas was sent early, what was
thought within the budget stands instead, with the marker put behind it.

A pinned marker does harm where the thought is over before it: there the model had to write around it. Such a
canvas stands up to the marker that really closed the thought; and if this time no thought was opened before
the pinned marker at all, nothing stands, and no marker is pinned any more.

An answer that ends before it says anything is not ended: what there is of it (its thought) stands, and the
next canvas must begin with a token that says something. That happens once.

`keep` is a function of the tokens before a place alone, but for a canvas whose pinned marker waits for its
thought (`holds_back`): so what was sent early is never taken back.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from ..errors import UsageError
from ..types import Note, Projection, Request, TurnMarks
from .commit import project
from .repair import to_repair
from .repetition import repeated
from .sequence import Sequence
from .thoughts import TurnState


@dataclass(frozen=True)
class Standing:
    """What stands of a canvas."""

    tokens: list[int]
    ended: bool = False  # the answer is complete
    put_in: bool = False  # the last token comes from no place
    notes: tuple[Note, ...] = ()
    retry: bool = False  # the next canvas must begin with something said
    pin: int | None = None  # where the next canvas must have a closing marker
    vain: bool = False  # the marker that was pinned closed nothing
    mended: dict[int, int] | None = (
        None  # {place: token}: nothing stands, the canvas is done again with these
    )

    def places(self, places: Items[int | None]) -> Items[int | None]:
        """Where each of the tokens comes from, given that of all of the canvas's."""
        return [*places[: len(self.tokens) - 1], None] if self.put_in else places


def guarded(request: Request, block: int) -> TurnMarks | None:
    """The marks by which the engine tells where an answer stands; None where it must not interfere.

    Given text stands at places of canvases, and contexts of blocks take whole canvases alone: neither bears
    canvases that stand in part.
    """
    if request.given or request.allowed or request.draft or block > 1:
        return None
    return request.marks


def check_marks(request: Request, vocabulary: int) -> None:
    """Raises UsageError for marks that are no tokens."""
    marks = request.marks
    if marks is None:
        return
    if (marks.open is None) != (marks.close is None):
        raise UsageError("a thought has both its markers or none", "marks")
    for token in (marks.open, marks.close, *marks.blank):
        if token is not None and not 0 <= token < vocabulary:
            raise UsageError(f"the marker {token} is outside the vocabulary of {vocabulary}", "marks")


def pinned(sequence: Sequence) -> dict[int, int]:
    """{place: token} of the closing marker that the next canvas must have."""
    marks = sequence.marks
    if marks is None or marks.close is None or sequence.vain:
        return {}
    if sequence.pin is None and sequence.budget is not None and sequence.turn.spent(sequence.budget):
        sequence.pin = 0
    return {} if sequence.pin is None else {sequence.pin: marks.close}


def keep(sequence: Sequence, tokens: Iterable[int], *, last: bool = False) -> Standing:
    """What stands of the draft of a canvas, or of what a constraint made of it. `last`: the canvas's last."""
    cut, ended = sequence.cut(tokens)
    marks, budget, pin = sequence.marks, sequence.budget, sequence.pin
    if marks is None or sequence.request.constraint is not None:
        return Standing(cut, ended, notes=_closed_at(sequence, cut))
    turn = sequence.turn
    for place, token in enumerate(cut):
        if token in sequence.request.eos_token_ids:
            if not turn.said and _may_retry(sequence, place):
                return _retry(cut[:place], turn, marks)
        elif token != marks.close:
            if budget is not None and turn.spent(budget):
                return _beyond(sequence, cut[:place], last)
        elif pin is not None and not turn.open and place == pin:
            return Standing([], vain=True)
        elif pin is not None and turn.open and place < pin:
            return Standing(cut[: place + 1])
        turn = turn.after(token, marks)
    return Standing(cut, ended, notes=_closed_at(sequence, cut))


def standing(sequence: Sequence) -> tuple[Projection, Standing]:
    """What a finished canvas commits, and what stands of that. Raises what its constraint raises.

    What a constraint makes of a canvas stands whole. So if a thought goes beyond its budget, on the canvas or
    in what the constraint makes of it, the canvas is done again with the marker pinned; a constraint that
    finds no text with that marker gets a canvas without.
    """
    draft = sequence.draft()
    if sequence.request.constraint is None:
        return project(sequence, draft), keep(sequence, draft, last=True)
    again = Projection((), (), sequence.constraint_state)
    place = _overrun(sequence, draft)
    try:
        made = project(sequence, draft) if place is None else again
    except UsageError:
        if sequence.pin is None:
            raise
        return again, Standing([], vain=True)
    if place is None:
        place = _overrun(sequence, made.tokens)
    if place is not None and place < len(draft):
        return again, Standing([], pin=place)
    if mended := to_repair(sequence, draft, made):
        return again, Standing([], pin=sequence.pin, mended=mended)
    return made, keep(sequence, made.tokens, last=True)


def _overrun(sequence: Sequence, tokens: Iterable[int]) -> int | None:
    """Which of the tokens of a canvas without a pinned marker has to close a thought."""
    marks, budget, turn = sequence.marks, sequence.budget, sequence.turn
    if marks is None or budget is None or sequence.pin is not None or sequence.vain:
        return None
    for place, token in enumerate(sequence.cut(tokens)[0]):
        if turn.spent(budget) and token != marks.close and token not in sequence.request.eos_token_ids:
            return place
        turn = turn.after(token, marks)
    return None


def _beyond(sequence: Sequence, thought: list[int], last: bool) -> Standing:
    """What stands of a canvas on which a thought goes on after these tokens, the last of its budget."""
    if last and sequence.pin is None and not sequence.sent and not sequence.vain:
        return Standing([], pin=len(thought))
    assert sequence.marks is not None and sequence.marks.close is not None
    return Standing([*thought, sequence.marks.close], put_in=True, notes=(_closed(sequence.budget),))


def holds_back(sequence: Sequence, tokens: list[int]) -> bool:
    """Whether these first tokens of a canvas may yet turn out not to stand: its pinned marker waits for a
    thought that they have not opened."""
    marks = sequence.marks
    return (
        sequence.pin is not None
        and not sequence.turn.open
        and marks is not None
        and (marks.open not in tokens)
    )


def note(sequence: Sequence, kept: Standing) -> None:
    """Notes what was committed, and what it says of the answer."""
    text = sequence.output[:-1] if kept.ended else sequence.output
    sequence.repetition = repeated(text, sequence.places) or sequence.repetition
    if sequence.marks is not None:
        sequence.turn = sequence.turn.after_all(kept.tokens, sequence.marks)
    sequence.notes += kept.notes
    sequence.pin, sequence.vain = kept.pin, sequence.vain or kept.vain
    sequence.retried = sequence.retried or kept.retry
    sequence.mended = kept.mended or {}
    sequence.repaired = sequence.repaired + 1 if kept.mended else 0


def _may_retry(sequence: Sequence, place: int) -> bool:
    """Once, and if there is room for the thought's end and a token of the answer."""
    return sequence.params.retry_empty and not sequence.retried and sequence.room > place + 1


def _retry(tokens: list[int], turn: TurnState, marks: TurnMarks) -> Standing:
    told = Note("empty_retried", "the model ended its turn before it said anything and was made to go on")
    if turn.open and marks.close is not None:
        return Standing([*tokens, marks.close], put_in=True, notes=(told,), retry=True)
    return Standing(tokens, notes=(told,), retry=True)


def _closed_at(sequence: Sequence, tokens: list[int]) -> tuple[Note, ...]:
    """A note if it was the pinned marker that closed a thought."""
    marks, pin = sequence.marks, sequence.pin
    if marks is None or pin is None or tokens[pin : pin + 1] != [marks.close]:
        return ()
    opened = sequence.turn.after_all(tokens[:pin], marks).open
    return (_closed(sequence.budget),) if opened else ()


def _closed(budget: int | None) -> Note:
    return Note("thinking_budget", f"the thought was closed after {budget} tokens")


__all__ = ["Standing", "check_marks", "guarded", "holds_back", "keep", "note", "pinned", "standing"]
