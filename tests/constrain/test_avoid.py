"""Texts that are never said: against plain search, over random canvases and the real engine."""

from __future__ import annotations

import random

import pytest

import canvaslm
from canvaslm.constrain.avoid import MAX_BYTES, MAX_WORDS, without
from canvaslm.errors import UsageError

from .words import vocabulary

WORDS = vocabulary()


@pytest.mark.parametrize("seed", range(20))
def test_the_automaton_refuses_exactly_what_has_a_word(seed: int) -> None:
    draw = random.Random(seed)
    words = ["".join(draw.choices("ab", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 4))]
    automaton = without(words, WORDS).steps.automaton
    seen = set()
    for _ in range(200):
        text = "".join(draw.choices("abc", k=draw.randint(0, 8)))
        allowed = not any(word in text for word in words)
        assert automaton.accepts(text.encode()) == allowed, (words, text)
        seen.add(allowed)
    assert False in seen


def test_a_marker_parts_what_stands_on_both_sides() -> None:
    automaton = without(["ab"], WORDS).steps.automaton
    assert automaton.accepts([ord("a"), 256, ord("b")])
    assert not automaton.accepts([256, ord("a"), ord("b")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one character at least"),
        (["a", ""], "one character at least"),
        ([str(i) for i in range(MAX_WORDS + 1)], "257 texts of"),
        (["x" * (MAX_BYTES + 1)], "of 4097 bytes"),
    ],
)
def test_what_is_too_much_or_nothing_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        without(words, WORDS)


def test_an_answer_says_it_otherwise_or_not_at_all() -> None:
    with canvaslm.load() as session:
        free = session.generate("Count by twos from 8 to 72", seed=0)
        words = free.text.split(" ")[2:4]
        for seed in range(3):
            reply = session.generate("Count by twos from 8 to 72", seed=seed, bad_words=words)
            assert not any(word in reply.text for word in words)
        same = session.generate("Count by twos from 8 to 72", seed=0, bad_words=["banana"])
        assert same.tokens == free.tokens
