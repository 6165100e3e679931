"""Doubt: levels, and where in the text they are."""

from __future__ import annotations

import pytest

from canvaslm.text.doubt import LEVELS, DoubtText, doubt_level, mean_causal
from canvaslm.types import CanvasReport, Committed, Draft, TokenLogprob, TokenRead

REPORT = CanvasReport(1, "converged", 0.0)
SURE, LOW, MIDDLE, HIGH = 0.0, *(limit - 0.1 for limit in LEVELS)


def token(data: bytes, causal: float | None) -> TokenLogprob:
    return TokenLogprob(data.decode("utf-8", "replace"), data, -0.5, (), causal, 1)


def event(text: str, *tokens: TokenLogprob) -> Committed:
    return Committed(0, 0, (), REPORT, text, token_logprobs=tokens)


def test_levels_go_by_the_causal_log_probability() -> None:
    assert [doubt_level(value) for value in (None, 0.0, *LEVELS)] == [0, 0, 0, 1, 2]
    assert [doubt_level(value) for value in (LOW, MIDDLE, HIGH, float("-inf"))] == [1, 2, 3, 3]


def test_the_mean_is_over_all_tokens() -> None:
    assert mean_causal([TokenRead(-1.0, 1, 0.0), TokenRead(-3.0, 2, 0.0)]) == -2.0
    assert mean_causal([]) == 0.0


def test_parts_are_as_long_as_may_be() -> None:
    parts = DoubtText().feed(
        event("Paris is in Rome.", token(b"Paris", SURE), token(b" is in", SURE), token(b" Rome", HIGH),
              token(b".", None))
    )  # fmt: skip
    assert parts == [("Paris is in", 0), (" Rome", 3), (".", 0)]


def test_text_may_come_behind_its_tokens() -> None:
    doubt = DoubtText()
    assert doubt.feed(event("one t", token(b"one", LOW), token(b" two", MIDDLE))) == [("one", 1), (" t", 2)]
    assert doubt.feed(Draft(0, 0, 1, 9, 1.0, (), (), (), ())) == []
    assert doubt.feed(event("wo!", token(b"", HIGH), token(b"!", SURE))) == [("wo", 2), ("!", 0)]


@pytest.mark.parametrize("levels", [(SURE, HIGH), (HIGH, SURE)])
def test_a_character_of_several_tokens_has_the_highest_level(levels: tuple[float, float]) -> None:
    data = "é".encode()
    parts = [token(data[:1], levels[0]), token(data[1:], levels[1]), token(b"a", SURE)]
    assert DoubtText().feed(event("éa", *parts)) == [("é", 3), ("a", 0)]
