"""The best path and the best edit are the best: everything else is tried."""

from __future__ import annotations

import random

import numpy as np
import pytest

from canvaslm.constrain.automaton import Automaton, compile_expression
from canvaslm.constrain.edit import Prices, best_edit
from canvaslm.constrain.expression import text
from canvaslm.constrain.path import Path, best_path
from canvaslm.constrain.reading import CanvasReading
from canvaslm.constrain.steps import Steps
from canvaslm.constrain.vocabulary import Vocabulary

from .brute import automaton, best_score, edit_score, reading
from .words import EOS, PAD, TURN_END, vocabulary, written

# Letters alone: every token of a text is one byte, so any other than the named ones is at the floor.
BYTES = Vocabulary.of(
    [b"", b"", *(bytes((byte,)) for byte in range(256))], (0, 1), [b""] * 258, (EOS,), PAD, {}
)
SMALL = [PAD, EOS, *(2 + ord(letter) for letter in "abc\\")]


def valid(steps: Steps, path: Path, state: int) -> bool:
    body = path.tokens[:-1] if path.ended else path.tokens
    for token in body:
        assert steps.vocabulary.token_bytes[token]
        state = steps.automaton.after(state, steps.vocabulary.token_bytes[token])
    return state == path.state and (bool(steps.automaton.ends[state]) or not path.ended)


def value(steps: Steps, reading: CanvasReading, path: Path, given: dict[int, int]) -> float:
    """What a path's tokens are worth, counted anew."""
    total = 0.0
    for place, token in enumerate(path.tokens):
        named = np.nonzero(reading.tokens[place] == token)[0]
        if place in given:
            assert token == given[place]
        elif path.ended and place == len(path.tokens) - 1:
            total += reading.end[place]
        else:
            total += reading.logprobs[place, named[0]] if len(named) else reading.floor[place]
    return float(total + (reading.tail()[len(path.tokens)] if path.ended else 0.0))


@pytest.mark.parametrize("seed", range(240))
def test_the_best_path_is_the_best_of_all(seed: int) -> None:
    rng, plain = np.random.default_rng(seed), random.Random(seed)
    steps = Steps.of(automaton(plain), BYTES)
    places, room_after = plain.randint(1, 4), plain.choice([0, 0, 1, 3])
    canvas = reading(rng, BYTES, places, plain.randint(1, 4), SMALL)
    state = plain.randrange(steps.automaton.states)
    given = {plain.randrange(places): plain.choice(SMALL)} if plain.random() < 0.3 else {}
    wanted = best_score(steps, canvas, state, room_after, given)
    found = best_path(steps, canvas, state, room_after, given.items())
    if found is None:
        assert wanted == -np.inf
        return
    assert found.score == pytest.approx(wanted)
    assert valid(steps, found, state)
    assert value(steps, canvas, found, given) == pytest.approx(wanted)
    assert found.ended or int(steps.distance[found.state]) + 1 <= room_after


@pytest.mark.parametrize("seed", range(120))
def test_the_best_edit_is_the_best_of_all(seed: int) -> None:
    rng, plain = np.random.default_rng(seed), random.Random(seed)
    steps = Steps.of(automaton(plain), BYTES)
    canvas = reading(rng, BYTES, plain.randint(1, 6), plain.randint(1, 4), SMALL)
    state, prices = plain.randrange(steps.automaton.states), Prices(*rng.uniform(0.5, 5, 3))
    ended, under_way = edit_score(steps, canvas, state, prices)
    found = best_edit(steps, canvas, state, 100, prices)
    assert found is not None
    assert found.score == pytest.approx(ended if found.ended else under_way)
    assert valid(steps, found, state)
    if found.ended and under_way > ended + 1e-6:
        assert under_way == pytest.approx(-prices.drop * len(canvas.tokens)), "it would have said nothing"
    if not found.ended:
        assert under_way > ended - 1e-6
    narrow = best_edit(steps, canvas, state, 1, prices)
    assert narrow is None or (narrow.ended and len(narrow.tokens) == 1)


def test_an_edit_keeps_what_it_can_and_says_where_from() -> None:
    """The text has a letter too many and one too few: one place is left out, one token put in."""
    steps = Steps.of(automaton_of("abcabc"), BYTES)
    draft = [2 + ord(letter) for letter in "abxcac"] + [EOS]
    canvas = CanvasReading.of(np.array(draft)[:, None], np.full((7, 1), -0.01), BYTES)
    found = best_edit(steps, canvas, 0, 100)
    assert found is not None and found.ended
    assert found.tokens == tuple([2 + ord(letter) for letter in "abcabc"] + [EOS])
    assert found.places == (0, 1, 3, 4, None, 5, 6)
    assert best_edit(steps, canvas, 0, 6) is None, "seven tokens are needed"


def automaton_of(value: str) -> Automaton:
    return compile_expression(text(value))


def test_what_must_follow_is_written_in_whole_words() -> None:
    """A key that no place names is put in as the tokens that spell it; so is the distance counted."""
    words = vocabulary(["name", '{"', '":', "a"])
    steps = Steps.of(automaton_of('{"name":"a"}'), words)
    assert steps.distance[0] == len(['{"', "name", '":', '"', "a", '"', "}"])
    unsure = CanvasReading.of(np.array([[PAD], [EOS], [EOS]]), np.full((3, 1), -5.0), words)
    found = best_edit(steps, unsure, 0, 100)
    assert found is not None
    assert [words.token_bytes[token] for token in found.tokens[:3]] == [b'{"', b"name", b'":']
    assert written(found.tokens, words) == b'{"name":"a"}'
    assert best_path(steps, unsure, 0, 5) is not None, "eight tokens, the end included"
    assert best_path(steps, unsure, 0, 4) is None


def test_the_end_is_the_one_the_model_named() -> None:
    words = vocabulary(["a"])
    steps = Steps.of(automaton_of("a"), words)
    for end in (EOS, TURN_END):
        canvas = CanvasReading.of(np.array([[8 + ord("b")], [end]]), np.full((2, 1), -0.5), words)
        for found in (best_path(steps, canvas, 0, 0), best_edit(steps, canvas, 0, 9)):
            assert found is not None
            assert found.tokens == (int(words.byte_ids[ord("a")]), end)


def test_the_white_space_around_a_token_can_be_left_out() -> None:
    """The model's quote is in one token with a space that the language forbids."""
    words = vocabulary([' "', " x"])
    steps = Steps.of(automaton_of('"a":"b"'), words)
    draft = [words.ids[data] for data in (b'"', b"a", b'"', b":", b' "', b"b", b'"')] + [EOS]
    canvas = CanvasReading.of(np.array(draft)[:, None], np.full((8, 1), -0.01), words)
    found = best_edit(steps, canvas, 0, 100)
    assert found is not None
    assert written(found.tokens, words) == b'"a":"b"'
    assert found.places == tuple(range(8))
    assert found.score == pytest.approx(-1 - 8 * 0.01)


def test_a_place_of_white_space_alone_is_left_out_for_little() -> None:
    words = vocabulary([])
    steps = Steps.of(automaton_of("a:b"), words)
    draft = [words.ids[bytes((byte,))] for byte in b"a: b"] + [EOS]
    canvas = CanvasReading.of(np.array(draft)[:, None], np.full((5, 1), -0.01), words)
    found = best_edit(steps, canvas, 0, 100)
    assert found is not None
    assert written(found.tokens, words) == b"a:b"
    assert found.places == (0, 1, 3, 4)
    assert found.score == pytest.approx(-1 - 4 * 0.01)
