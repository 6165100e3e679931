"""Canvases that are denoised again because a constraint had to change them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from canvaslm.constrain import answers
from canvaslm.engine import Driver, Engine
from canvaslm.types import Committed, Event, Finished, Params, Projection, Readout, Request
from tests.constrain.words import EOS, TURN_END, vocabulary, written
from tests.tiny import tiny_model

WORDS, PLACES = vocabulary(), 16
PATTERN = "[a-z]{3,9}-[0-9]{2}(;[a-z]{3,9}-[0-9]{2}){0,3}"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(vocab_size=WORDS.size, canvas_length=PLACES))


def asked(seed: int, repair: int, **changes: Any) -> Request:
    params = Params(max_new_tokens=48, max_denoising_steps=3, seed=seed, repair=repair)
    request = Request((5, 9, 11), params, (EOS, TURN_END), constraint=answers.regex(PATTERN, WORDS))
    return replace(request, **changes)


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Committed) for token in event.tokens]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("repair", [0, 1, 3])
def test_answers_are_valid_however_often_they_are_repaired(engine: Engine, seed: int, repair: int) -> None:
    events = list(Driver(engine).events(asked(seed, repair)))
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.reason == "stop"
    assert re.fullmatch(PATTERN, written(tokens_of(events), WORDS).decode())
    idle = [event for event in events if isinstance(event, Committed) and not event.tokens]
    assert len(idle) <= repair * (len(end.canvases) - len(idle))
    assert bool(idle) == (repair > 0), "noise is no text of the language: every canvas is repaired"


def test_the_repair_is_the_same_in_a_crowd(engine: Engine) -> None:
    crowd = [asked(seed, repair) for seed in range(3) for repair in (0, 2)]
    ids = [engine.submit(request) for request in crowd]
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    for number, request in zip(ids, crowd, strict=True):
        alone = tokens_of(list(Driver(engine).events(request)))
        assert tokens_of([event for event in events if event.request_id == number]) == alone


class Seen:
    """Makes 'a' of the third place's token, and notes what was given on each canvas."""

    top, shortest = 0, 1

    def __init__(self) -> None:
        self.given: list[tuple[bool, ...]] = []
        self.tokens: list[tuple[int, ...]] = []

    def start(self) -> int:
        return 0

    def project(self, state: int, readout: Readout) -> Projection:
        self.given.append(readout.given)
        self.tokens.append(readout.tokens)
        letter = int(WORDS.byte_ids[ord("a")])
        made = [*readout.tokens[:2], letter, *readout.tokens[3:6]]
        return Projection(tuple(made), tuple(range(6)), state + 1, ended=True)


def test_what_is_given_ends_with_the_first_change(engine: Engine) -> None:
    seen = Seen()
    events = list(Driver(engine).events(asked(1, 5, constraint=seen, eos_token_ids=())))
    assert seen.given == [(False,) * PLACES, (True,) * 3 + (False,) * (PLACES - 3)]
    assert seen.tokens[1][:2] == seen.tokens[0][:2]
    assert seen.tokens[1][2] == int(WORDS.byte_ids[ord("a")])
    assert len(tokens_of(events)) == 6, "a canvas that is not changed stands"


def test_places_that_a_request_gives_are_left_to_it(engine: Engine) -> None:
    seen = Seen()
    list(Driver(engine).events(asked(1, 5, constraint=seen, given={9: 7})))
    assert len(seen.given) == 1
