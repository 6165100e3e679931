"""Regular constraints: valid for any weights and budget, and what is valid already is left alone."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from canvaslm.constrain.answers import Thought, choice, regex, with_thought
from canvaslm.constrain.expression import ANY_TEXT, EMPTY, marker, repeat, sequence
from canvaslm.constrain.regular import Regular, marker_symbols, regular
from canvaslm.errors import UsageError
from canvaslm.types import Constraint, Readout

from .canvases import answer, readout
from .words import EOS, MARKER_TEXTS, PAD, TURN_END, vocabulary, written

WORDS = vocabulary()
PATTERNS = [
    "[a-z]{3,8}@[a-z]+\\.(com|org)", "-?[0-9]+(\\.[0-9]+)?", '\\{"name": "[^"\\\\]*"\\}', "(true|false|null)",
    "the( the)*", ".{5,40}", "[\\s\\S]*", "世界+|é{2,}", "(12|00){3}", "a" * 60,
]  # fmt: skip
THOUGHT = Thought("<|channel>", "<channel|>", "thought")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("edits", [True, False])
def test_any_canvas_becomes_a_text_of_the_language(pattern: str, seed: int, edits: bool) -> None:
    constraint, rng = replace(regex(pattern, WORDS), edits=edits), np.random.default_rng(seed)
    budget = constraint.shortest + [0, 3, 50][seed % 3]
    tokens = answer(constraint, rng, places=16, budget=budget)
    assert re.fullmatch(pattern, written(tokens, WORDS).decode(), re.ASCII)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_budget_below_the_shortest_is_refused(pattern: str) -> None:
    constraint = regex(pattern, WORDS)
    for budget in range(1, constraint.shortest):
        with pytest.raises(UsageError, match="raise max_new_tokens") as error:
            constraint.project(constraint.start(), canvas([PAD] * 16, room=budget))
        assert error.value.param == "max_new_tokens"
    least = constraint.project(constraint.start(), canvas([PAD] * 90, room=constraint.shortest))
    assert least.ended and len(least.tokens) == constraint.shortest


def canvas(tokens: list[int], room: int = 100, given: tuple[int, ...] = ()) -> Readout:
    """A sure canvas."""
    others = [[token, *(t for t in range(3, 18) if t != token)][:8] for token in tokens]
    values = [[-0.3, *[-4.0] * (len(row) - 1)] for row in others]
    fixed = tuple(place in given for place in range(len(tokens)))
    return Readout(tuple(tokens), fixed, tuple(map(tuple, others)), tuple(map(tuple, values)), room)


def letters(text: str) -> list[int]:
    return [int(WORDS.byte_ids[byte]) for byte in text.encode()]


@pytest.mark.parametrize("end", [EOS, TURN_END])
def test_a_valid_canvas_is_left_alone(end: int) -> None:
    constraint = regex("[a-z]+ [a-z]+", WORDS)
    draft = [*letters("ab cd"), end, PAD, PAD, end]
    found = constraint.project(constraint.start(), canvas(draft))
    assert (found.tokens, found.ended) == (tuple(draft[:6]), True)
    assert found.places == tuple(range(6))
    going_on = constraint.project(constraint.start(), canvas(letters("ab cdefg")))
    assert (going_on.tokens, going_on.ended) == (tuple(letters("ab cdefg")), False)
    ending = constraint.project(going_on.state, canvas([end, PAD]))
    assert (ending.tokens, ending.ended) == ((end,), True)


def test_what_is_given_at_the_start_leaves_the_rest_to_edits() -> None:
    constraint = regex("[a-z]+-[0-9]{2};[a-z]{3}", WORDS)
    draft = [*letters("ab-1;cde"), EOS, PAD, PAD]
    found = constraint.project(constraint.start(), canvas(draft, given=(0, 1, 2)))
    text = written(found.tokens, WORDS).decode()
    assert re.fullmatch("ab-(1[0-9]|[0-9]1);cde", text), "a digit is put in, and all else is kept"
    assert found.places[:3] == (0, 1, 2)
    assert None in found.places
    assert {4, 5, 6, 7} <= set(found.places)
    fixed = constraint.project(constraint.start(), canvas(draft, given=(0, 1, 2, 7)))
    assert fixed.tokens[7] == draft[7], "what is given behind that keeps its place"


def test_a_canvas_that_would_leave_no_room_to_end_is_not_left_alone() -> None:
    constraint = regex("[a-z]+!!", WORDS)
    draft = canvas(letters("abcdefgh"), room=8)
    found = constraint.project(constraint.start(), draft)
    assert written(found.tokens, WORDS) == b"abcde!!"
    assert found.ended and len(found.tokens) == 8


def test_the_nearest_text_keeps_what_is_right() -> None:
    """A key that is longer than the model's: what follows it moves, and stays."""
    constraint = regex('\\{"full_name": "[a-z]+", "n": [0-9]+\\}', WORDS)
    draft = [*letters('{"name": "ada", "n": 42}'), EOS, PAD]
    found = constraint.project(constraint.start(), canvas(draft))
    assert written(found.tokens, WORDS) == b'{"full_name": "ada", "n": 42}'
    assert len(found.tokens) > len(draft) and found.places[0] == 0
    kept = replace(constraint, edits=False).project(constraint.start(), canvas(draft))
    assert len(kept.tokens) <= len(draft), "no place is added"


def test_given_places_stay_what_they_are() -> None:
    constraint = regex("[a-z]{4} [a-z]{3}", WORDS)
    draft = [*letters("x?cd?efg"), EOS]
    found = constraint.project(constraint.start(), canvas(draft, given=(0, 3, 7)))
    text = written(found.tokens, WORDS).decode()
    assert re.fullmatch("x[a-z]{2}d [a-z]{2}g", text)
    with pytest.raises(UsageError, match="given places contradict") as error:
        constraint.project(constraint.start(), canvas(draft, given=(1,)))
    assert error.value.param == "given"


def test_an_end_before_given_text_is_no_end() -> None:
    constraint = regex("[a-z]+", WORDS)
    draft = [*letters("ab"), EOS, *letters("cd"), EOS]
    found = constraint.project(constraint.start(), canvas(draft, given=(4,)))
    assert re.fullmatch(b"ab[a-z]cd", written(found.tokens, WORDS))


@pytest.mark.parametrize("seed", range(30))
def test_given_places_hold_on_any_canvas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    constraint, given = (
        regex("[a-z ]{10,40}", WORDS),
        {int(rng.integers(16)): letters("q")[0] for _ in range(3)},
    )
    found = constraint.project(constraint.start(), readout(rng, WORDS.size, 16, 60, given))
    assert all(found.tokens[place] == token for place, token in given.items())


def test_one_of_the_choices_is_chosen() -> None:
    options = ["yes", "no", "", "世界", "nonsense"]
    constraint = choice(options, WORDS)
    found = {written(answer(constraint, np.random.default_rng(seed), 16, 30), WORDS) for seed in range(30)}
    assert found <= {option.encode() for option in options}
    assert len(found) > 1
    assert constraint.shortest == 1
    near = constraint.project(constraint.start(), canvas([*letters("nonsence"), EOS, PAD]))
    assert written(near.tokens, WORDS) == b"nonsense"


def test_what_no_choice_can_be_is_refused() -> None:
    for texts, says in (
        ([], "one text at least"),
        (["a" * 70_000], "65536 are the most"),
        (["\ud800"], "surrogate"),
    ):
        with pytest.raises(UsageError, match=says):
            choice(texts, WORDS)
    with pytest.raises(UsageError, match="too large to guarantee") as error:
        choice([f"{n:x}-{n * 7919 % 104729:x}" for n in range(6000)], WORDS)
    assert error.value.param == "choice"


def test_a_thought_may_stand_before_the_answer() -> None:
    constraint = regex("[0-9]{2}", WORDS, thought=THOUGHT)
    begin, end = (WORDS.token_bytes.index((WORDS.markers[text],)) for text in MARKER_TEXTS[:2])
    thinking = [begin, *letters("thought\nhm 17"), end, *letters("42"), EOS]
    for draft in (thinking, [*letters("42"), EOS, PAD]):
        found = constraint.project(constraint.start(), canvas(draft))
        assert found.tokens == tuple(draft[: draft.index(EOS) + 1])
    wrong = [begin, *letters("thought\nhm"), begin, end, *letters("4x2"), EOS]
    found = constraint.project(constraint.start(), canvas(wrong))
    assert re.fullmatch(rb"<\|channel>thought\nhm.?<channel\|>42", written(found.tokens, WORDS))
    for seed in range(20):
        text = written(answer(constraint, np.random.default_rng(seed), 16, 40), WORDS)
        assert re.fullmatch(rb"(<\|channel>thought\n[^<]*(?s:.*)<channel\|>)?[0-9]{2}", text)


def test_a_thought_is_no_part_of_a_vocabulary_without_its_markers() -> None:
    plain = replace(WORDS, markers={})
    assert with_thought(EMPTY, plain, THOUGHT) is EMPTY
    with pytest.raises(UsageError, match=r"no control token <\|channel>"):
        marker_symbols(plain, ("<|channel>",))


def test_a_marker_without_a_token_is_refused() -> None:
    with pytest.raises(UsageError, match="no token for a marker"):
        regular(sequence("a", marker(256 + 9)), WORDS, "tools")


def test_text_is_no_marker_and_a_marker_no_text() -> None:
    quote = WORDS.markers['<|"|>']
    constraint = regular(repeat(sequence(marker(quote), ANY_TEXT, marker(quote)), 1, 2), WORDS)
    token = WORDS.token_bytes.index((quote,))
    for seed in range(30):
        tokens = answer(constraint, np.random.default_rng(seed), 16, 40)
        assert tokens.count(token) in (2, 4)
        assert tokens[0] == token and tokens[-2] == token


def test_a_constraint_keeps_few_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server holds many: what is remembered of tokens is bounded."""
    monkeypatch.setattr("canvaslm.constrain.steps._MEMORY", 20_000)
    constraint = regex(".{5,40}", WORDS)
    for token in range(WORDS.size):
        walk = constraint.steps.walk(token)
        assert walk is constraint.steps.walk(token)
    kept = constraint.steps._walks.values()
    assert 0 < sum(a.nbytes + b.nbytes for a, b in kept) <= 20_000


def test_it_is_a_constraint_of_the_engine() -> None:
    constraint: Constraint = regex("a", WORDS)
    assert isinstance(constraint, Regular) and constraint.top == 16
