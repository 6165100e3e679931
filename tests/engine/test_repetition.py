"""Answers that repeat themselves over whole canvases: noticed when they do, and only then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvaslm.engine.repetition import LEAST, period, repeated
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Params, Request
from tests.engine.scripts import answer_of, scripted_engine
from tests.tiny import tiny_model

EOS, PLACES = 1, 16
SPAN = LEAST  # tokens that must repeat at canvases of 16


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(canvas_length=PLACES, sliding_window=24)


def by_hand(tokens: Sequence[int]) -> int:
    return next(
        p for p in range(1, len(tokens) + 1)
        if all(tokens[i] == tokens[i + p] for i in range(len(tokens) - p))
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 4))
def test_a_period_is_the_smallest(tokens: list[int], times: int) -> None:
    assert period(tokens * times) == by_hand(tokens * times)
    assert period([]) == 0


@pytest.mark.parametrize("length", [1, 3, 16, 31, SPAN // 2])
@pytest.mark.parametrize("before", [0, 1, 50])
def test_what_repeats_is_told_with_both_its_lengths(length: int, before: int) -> None:
    start = [40 + i % 7 for i in range(before)]
    text = list(range(length))
    output = [*start, *(text * (SPAN + 9))[: SPAN + 9]]
    told = repeated(output, PLACES)
    assert told is not None and told.text == f"the last {SPAN + 9} tokens repeat the same {length}"
    assert repeated(output[: before + SPAN - 1], PLACES) is None
    assert repeated([*output[:-1], 63], PLACES) is None


def test_two_canvases_must_repeat_where_they_are_longer_than_the_least() -> None:
    output = [7] * 300
    assert repeated(output, 150) is not None and repeated(output, 151) is None
    text = list(range(200))
    assert repeated(text * 2, 200) is not None  # one canvas, word for word that before it
    assert repeated([*text, *text[:-1], 9], 200) is None


def ask(**params: Any) -> Request:
    plain = Params(max_new_tokens=12 * PLACES, max_denoising_steps=3, seed=0)
    return Request((3, 4), replace(plain, **params), (EOS,))


def test_it_is_reported_and_ends_the_answer_only_when_asked(model: DiffusionGemma) -> None:
    def loops(done: int) -> list[int]:
        return list(range(10, 26)) if done < 2 else [30, 31, 32, 33] * 4

    whole, end = answer_of(scripted_engine(model, [loops]), ask())
    assert (len(whole), end.reason) == (12, "length")
    assert [note.text for note in end.notes] == ["the last 160 tokens repeat the same 4"]
    cut, end = answer_of(scripted_engine(model, [loops]), ask(stop_on_repetition=True))
    assert (len(cut), end.reason) == (2 + SPAN // PLACES, "length")
    assert [note.kind for note in end.notes] == ["repetition"]


def test_an_answer_that_goes_on_differently_was_repeating_all_the_same(model: DiffusionGemma) -> None:
    def recovers(done: int) -> list[int]:
        return [9] * PLACES if done < 9 else [10, EOS]

    _, end = answer_of(scripted_engine(model, [recovers]), ask())
    assert (end.reason, len(end.notes)) == ("stop", 1)
    assert end.notes[0].text == "the last 144 tokens repeat the same 1"


def test_text_that_does_not_repeat_is_left_alone(model: DiffusionGemma) -> None:
    def counts(done: int) -> list[int]:
        return [done + 2] * PLACES

    _, end = answer_of(scripted_engine(model, [counts]), ask(stop_on_repetition=True))
    assert (len(end.canvases), end.notes) == (12, ())
