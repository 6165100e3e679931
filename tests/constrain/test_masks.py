"""Masks of places: what a text of the language can have there, all of it, and near the start nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from canvaslm.constrain import masks as module
from canvaslm.constrain.answers import regex
from canvaslm.constrain.masks import EXACT
from canvaslm.constrain.regular import Regular
from canvaslm.constrain.token_tree import tree_of
from canvaslm.types import Masking

from .brute import PATTERNS
from .words import EOS, PAD, TURN_END, vocabulary

WORDS = vocabulary([*"abc", "ab", "ba", "abc", "aab", "世界", "{2}"])
ENDS = {EOS, TURN_END}
LONG = "[a-z]{3,9}(-[0-9]{2}){1,8}"


def allowed(mask: bytes | None) -> set[int] | None:
    if mask is None:
        return None
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
    return set(np.nonzero(bits)[0].tolist())


def masks(
    constraint: Regular, given: Sequence[int | None], room: int, state: int | None = None
) -> list[set[int] | None]:
    state = constraint.start() if state is None else state
    return [allowed(mask) for mask in constraint.masks(state, given, room)]


def plainly(constraint: Regular, places: int, room: int) -> list[set[int]]:
    """The same, token by token and state by state."""
    steps, found = constraint.steps, []
    automaton, states, over = steps.automaton, {constraint.start()}, False
    for place in range(places):
        left, may, behind = room - place - 1, set(), set()
        for state in states:
            for token, symbols in enumerate(WORDS.token_bytes):
                target = automaton.after(state, symbols) if symbols else automaton.states
                if target < automaton.states:
                    behind.add(target)
                    may |= {token} if steps.distance[target] + 1 <= left else set()
        ending = left >= 0 and any(automaton.ends[state] for state in states)
        may |= {*ENDS, PAD} if over else ENDS if ending else set()
        found.append(may)
        states, over = behind, over or ending
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("more", [0, 1, 4, 40])
def test_masks_are_what_single_states_and_tokens_say(pattern: str, more: int) -> None:
    constraint = regex(pattern, WORDS)
    places, room = min(8, EXACT), constraint.shortest + more
    assert masks(constraint, [None] * places, room) == [
        may or None for may in plainly(constraint, places, room)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_text_of_the_language_is_allowed(seed: int) -> None:
    """Tokens that lead on are taken at random, as far as the room suffices."""
    constraint, rng = regex(LONG, WORDS), random.Random(seed)
    steps, state, room = constraint.steps, constraint.start(), rng.choice([13, 20, 60])
    body: list[int] = []
    while not (steps.automaton.ends[state] and (rng.random() < 0.2 or len(body) + 1 == room)):
        ways = [
            (token, after)
            for token, symbols in enumerate(WORDS.token_bytes)
            if symbols and (after := steps.automaton.after(state, symbols)) < steps.automaton.states
            if steps.distance[after] + 1 <= room - len(body) - 1
        ]
        if not ways:
            break
        token, state = rng.choice(ways)
        body.append(token)
    text = [*body, rng.choice([EOS, TURN_END]), PAD, EOS]
    for place, may in enumerate(masks(constraint, [None] * len(text), room)):
        assert may is None or text[place] in may, (place, text)


def test_far_places_are_free_of_what_the_language_never_has() -> None:
    constraint = regex(LONG, WORDS)
    far = masks(constraint, [None] * (EXACT + 40), 200)[EXACT:]
    letters = {int(WORDS.byte_ids[byte]) for byte in b"-0123456789"}
    assert all(may is not None and letters <= may for may in far)
    assert far[1:] == far[:-1]
    assert all(may is not None and int(WORDS.byte_ids[ord("{")]) not in may for may in far)


def test_a_short_room_allows_only_what_ends_in_time() -> None:
    constraint = regex("a*b", WORDS)
    a, b = (int(WORDS.token_bytes.index(text)) for text in (b"a", b"b"))
    places = masks(constraint, [None] * 6, 3)
    assert [len(may or ()) > 0 for may in places] == [True] * 6
    assert [may is not None and bool(may & same(b"a")) for may in places] == [True, False, False] + [
        False
    ] * 3
    assert b in (places[0] or ()) and a in (places[0] or ())
    assert places[2] == {*ENDS, PAD} and places[5] == {*ENDS, PAD}


def same(text: bytes) -> set[int]:
    """All tokens of this text."""
    return {token for token, data in enumerate(WORDS.token_bytes) if data == text}


def test_what_is_given_leads_on() -> None:
    constraint = regex("(ab|cc){2}", WORDS)
    a, c = int(WORDS.byte_ids[ord("a")]), int(WORDS.byte_ids[ord("c")])
    first, second, *_ = masks(constraint, [a, None, None, None], 9)
    assert (first, second) == (None, same(b"b") | same(b"ba"))
    last, end, behind = masks(constraint, [c, c, c, c, EOS, None], 9)[3:]
    assert (last, end, behind) == (None, None, {*ENDS, PAD})


def test_places_behind_a_contradiction_are_free() -> None:
    constraint = regex("abab", WORDS)
    a = int(WORDS.byte_ids[ord("a")])
    found = masks(constraint, [a, a, None, None], 9)
    assert found == [None] * 4


def test_what_takes_too_long_to_say_is_free_whatever_was_said_before(monkeypatch: Any) -> None:
    first, used, fresh = (regex(LONG, WORDS) for _ in range(3))
    free = [None] * 12
    whole = masks(first, free, 60)
    assert masks(first, free, 60) == whole, "what is kept says the same"
    masks(fresh, free[:1], 60)
    monkeypatch.setattr(module, "MOST_WORK", fresh._masks._sets.work)
    masks(used, [int(WORDS.byte_ids[ord("a")])] * 5 + free, 60)
    said = masks(fresh, free, 60)
    assert masks(used, free, 60) == said
    assert said[0] == whole[0] and said[-1] is None


def test_regular_languages_can_say_and_trees_hold_every_token() -> None:
    assert isinstance(regex("a", WORDS), Masking)
    levels = tree_of(WORDS.token_bytes)
    held = sorted(token for level in levels for token in level.token.tolist())
    assert held == [token for token, symbols in enumerate(WORDS.token_bytes) if symbols]
    nodes = [len(level.parent) for level in levels]
    runs = [tuple(symbols) for symbols in WORDS.token_bytes]
    assert nodes == [len({run[: i + 1] for run in runs if len(run) > i}) for i in range(len(nodes))]
