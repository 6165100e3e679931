"""What a beam makes of a canvas, place by place."""

from __future__ import annotations

import numpy as np
import pytest

from canvaslm.constrain.beam import Beam, CanvasRows, Found
from canvaslm.constrain.completion import Effort
from canvaslm.constrain.matchers import Matchers, SymbolWalker

from .test_matchers import grammar
from .words import EOS, PAD, vocabulary

WORDS = vocabulary()
MATCHERS = Matchers.of(WORDS)
LISTS = 'start: "[" (N ("," N)*)? "]"\nN: /[0-9]{1,3}/'
KNOWN = tuple(MATCHERS.split(b"[]"))


def ids(text: str) -> list[int]:
    """A byte a token; `$` is the end, `_` padding."""
    special = {"$": EOS, "_": PAD}
    return [special.get(c, int(WORDS.byte_ids[ord(c)])) for c in text]


def rows(best: str, second: str = "", gap: float = 1.0, given: tuple[int, ...] = ()) -> CanvasRows:
    """A canvas whose most probable tokens are `best`, and next to them, `gap` nats worse, `second`."""
    tokens = np.array([ids(best), ids(second or "~" * len(best))], np.int64).T
    logprobs = np.array([[-0.01, -0.01 - gap]] * len(best))
    pinned = [place in given for place in range(len(best))]
    logprobs[pinned] = (0.0, -np.inf)
    return CanvasRows.of(tokens, logprobs, pinned, WORDS.ends, PAD, WORDS.size)


def found_in(places: CanvasRows, room: int = 100, steps: int = 10_000) -> Found:
    walker = SymbolWalker(MATCHERS, MATCHERS.matcher(grammar(LISTS)))
    return Beam(MATCHERS, walker, KNOWN, room, Effort(steps)).best(places)


def said(found: Found) -> bytes:
    return b"".join(WORDS.names[token] for token in found.tokens if token != EOS)


@pytest.mark.parametrize(
    ("best", "second", "meant"),
    [
        ("[1,22]$____", "", b"[1,22]"),  # valid
        ("[1,22]$9a]$", "", b"[1,22]"),  # what stands behind the end says nothing
        ("[1;22]$____", "~~,~~~~~~~~", b"[1,22]"),  # the second best fits
        ("[1;22]$____", "", b"[122]"),  # nothing fits: left out
        ("[1 ,22]$___", "", b"[1,22]"),
        ("[1234]$____", "", b"[123,4]"),
        ("[12,,3]$___", "", b"[12,3]"),
        ("[12,3$_____", "", b"[12,3]"),  # the end is missing
        ("ok [1]$____", "", b"[1]"),
        ("1,2]$______", "", b"[1,2]"),  # put in
    ],
)
def test_the_nearest_document(best: str, second: str, meant: bytes) -> None:
    found = found_in(rows(best, second))
    assert said(found) == meant
    assert found.ended and found.tokens[-1] == EOS


def test_places_tell_where_tokens_come_from() -> None:
    found = found_in(rows("1;22]$____"))
    assert said(found) == b"[122]"
    assert found.places == (None, 0, 2, 3, 4, 5)


def test_given_places_stay() -> None:
    """The comma is given: digits make way for it, not it for them."""
    found = found_in(rows("[1234,5]$__", given=(5,)))
    assert b"," in said(found) and 5 in found.places


def test_what_goes_on_has_its_end_in_hand() -> None:
    found = found_in(rows("[1,22,333,4"))
    assert not found.ended and said(found) == b"[1,22,333,4"
    assert said(Found(found.completion, (), False)) == b"]"


@pytest.mark.parametrize("room", range(3, 14))
def test_any_room_is_enough(room: int) -> None:
    """As much of the canvas as fits with an end; never more than the room."""
    found = found_in(rows("[1,22,333,4"[:room]), room)
    assert len(found.tokens) + len(found.completion) + (not found.ended) <= room
    whole = said(found) + said(Found(found.completion, (), False))
    assert whole.startswith(b"[") and whole.endswith(b"]")
    assert found.ended or len(found.tokens) == 11


def test_without_work_left_the_end_in_hand_is_what_is_left() -> None:
    found = found_in(rows("[1,22,333,4"), steps=0)
    assert said(found) == b"[]" and found.ended
    assert set(found.places) == {None}


def test_a_canvas_is_read_as_far_as_its_work_goes() -> None:
    """The same each time, and a document: what was read by then, closed."""
    found = []
    for reads in (0, 100, 100, 400, 800_000):
        walker = SymbolWalker(MATCHERS, MATCHERS.matcher(grammar(LISTS)))
        found.append(Beam(MATCHERS, walker, KNOWN, 100, Effort(10_000), reads).best(rows("[1,22,,333,4")))
    texts = [said(one) + said(Found(one.completion, (), False)) for one in found]
    assert texts[0] == b"[]" and texts[1] == texts[2] and found[1] == found[2]
    assert len(texts[0]) < len(texts[1]) < len(texts[3]) <= len(texts[4]) == len(b"[1,22,333,4]")
    assert found[1].ended and not found[4].ended


def test_no_places_ask_for_the_end() -> None:
    empty = np.zeros((0, 2), np.int64)
    found = found_in(CanvasRows.of(empty, empty.astype(float), [], WORDS.ends, PAD, WORDS.size))
    assert said(found) == b"[]" and found.ended
