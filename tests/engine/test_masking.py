"""Canvases denoised under masks: tokens stay within them, answers valid, and alone the same as in a crowd."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from canvaslm.constrain import answers
from canvaslm.engine import Driver, Engine
from canvaslm.errors import UsageError
from canvaslm.types import Committed, Draft, Event, Finished, Params, Projection, Readout, Request, TokenRules
from tests.constrain.words import EOS, TURN_END, vocabulary, written
from tests.tiny import tiny_model

WORDS, PLACES = vocabulary(), 16
PATTERN = "[a-z]{3,9}-[0-9]{2}(;[a-z]{3,9}-[0-9]{2}){0,3}"
REGEX = answers.regex(PATTERN, WORDS)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(vocab_size=WORDS.size, canvas_length=PLACES))


def asked(seed: int, mask: str = "denoise", **changes: Any) -> Request:
    params = Params(max_new_tokens=48, max_denoising_steps=3, seed=seed, mask=mask)
    request = Request((5, 9, 11), params, (EOS, TURN_END), constraint=REGEX, drafts=True)
    return replace(request, **changes)


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Committed) for token in event.tokens]


def first_masks(request: Request) -> list[set[int]]:
    masks = REGEX.masks(REGEX.start(), [None] * PLACES, request.params.max_new_tokens)
    rows = [np.unpackbits(np.frombuffer(mask or b"", np.uint8), bitorder="little") for mask in masks]
    return [set(np.nonzero(row)[0].tolist()) for row in rows]


def first_drafts(events: Sequence[Event]) -> list[tuple[int, ...]]:
    return [event.tokens for event in events if isinstance(event, Draft) and event.canvas == 0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("repair", [0, 1])
def test_drafts_keep_to_the_masks_and_answers_are_valid(engine: Engine, seed: int, repair: int) -> None:
    request = asked(seed)
    request = replace(request, params=replace(request.params, repair=repair))
    events = list(Driver(engine).events(request))
    assert isinstance(events[-1], Finished) and events[-1].reason == "stop"
    assert re.fullmatch(PATTERN, written(tokens_of(events), WORDS).decode())
    masks, drafts = first_masks(request), first_drafts(events)
    assert len(drafts) == 3
    assert all(token in may for draft in drafts for token, may in zip(draft, masks, strict=True))
    free = first_drafts(list(Driver(engine).events(asked(seed, "off"))))
    assert any(token not in may for draft in free for token, may in zip(draft, masks, strict=True))


def test_rows_with_and_without_masks_are_the_same_alone_and_in_a_crowd(engine: Engine) -> None:
    crowd = [asked(seed, mask) for seed in range(3) for mask in ("denoise", "off")]
    crowd.append(asked(7, given={1: int(WORDS.byte_ids[ord("q")])}))
    crowd.append(asked(8, constraint=None))
    ids = [engine.submit(request) for request in crowd]
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    for number, request in zip(ids, crowd, strict=True):
        mine = [event for event in events if event.request_id == number]
        alone = list(Driver(engine).events(request))
        assert tokens_of(mine) == tokens_of(alone)
        assert first_drafts(mine) == first_drafts(alone)


def test_without_a_constraint_a_mask_changes_nothing(engine: Engine) -> None:
    free = [list(Driver(engine).events(asked(1, mask, constraint=None))) for mask in ("off", "denoise")]
    assert tokens_of(free[0]) == tokens_of(free[1])


def test_rules_hold_beside_masks_and_leave_every_place_a_token(engine: Engine) -> None:
    """No letter may come, so that the first place keeps its rule; digits and what else there is stay."""
    letters = tuple((token, -math.inf) for token in first_masks(asked(0))[0])
    request = asked(2, rules=TokenRules(letters))
    events = list(Driver(engine).events(request))
    assert isinstance(events[-1], Finished)
    never = {token for token, _ in letters}
    for draft in first_drafts(events):
        assert not never & set(draft)
        for token, may in list(zip(draft, first_masks(request), strict=True))[1:]:
            assert token in may or not may - never
    params = replace(request.params, min_new_tokens=12)
    long = list(Driver(engine).events(replace(asked(3), params=params)))
    assert all(not {EOS, TURN_END} & set(draft[:12]) for draft in first_drafts(long))


@dataclass(frozen=True)
class Mute:
    """A constraint that cannot say what may stand at a place."""

    top: int = 0
    shortest: int = 1

    def start(self) -> int:
        return 0

    def project(self, state: int, readout: Readout) -> Projection:
        return Projection(readout.tokens, tuple(range(len(readout.tokens))), 0, ended=True)


def test_constraints_without_masks_are_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="leave out mask") as refused:
        engine.submit(asked(0, constraint=Mute()))
    assert refused.value.param == "mask"
    assert isinstance(list(Driver(engine).events(asked(0, "off", constraint=Mute())))[-1], Finished)
