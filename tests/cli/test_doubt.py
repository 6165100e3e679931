"""Doubt on the command line: marks in the answer, their legend, JSON."""

from __future__ import annotations

import re

import pytest

from canvaslm.cli.canvas_view import Style
from canvaslm.cli.doubt import doubt_parts, painted
from canvaslm.cli.terminal import Abilities

from .conftest import Program
from .fake import FakeSession

CAUSAL = {"in": -0.7, "Rome,": -4.0, "Italy.": float("-inf")}


def session() -> FakeSession:
    return FakeSession(["Paris is in Rome,\nnot Italy."], causal=CAUSAL)


def test_without_colour_marks_are_in_the_text(program: Program) -> None:
    shown = program("run", "-p", "x", "--doubt", session=session())
    assert (shown.code, shown.out) == (0, "Paris is [?in] [???Rome,]\nnot [???Italy.]\n")
    legend = "doubt: of 7 tokens 1 [?] below 61 %, 2 [???] below 14 % likely, as the causal reader says\n"
    assert legend in shown.err


def test_with_colour_the_text_is_as_it_is(program: Program) -> None:
    shown = program("run", "-p", "x", "--doubt", "--color", "always", session=session())
    assert "\x1b[4;38;5;178min\x1b[0m \x1b[4;38;5;196mRome,\x1b[0m\n" in shown.out
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown.out) == "Paris is in Rome,\nnot Italy.\n"
    assert "\x1b[4;38;5;196mred\x1b[0m below 14 %" in shown.err


def test_sure_answers_say_so(program: Program) -> None:
    shown = program("run", "-p", "x", "--doubt", session=FakeSession(["Paris."]))
    assert shown.out == "Paris.\n"
    assert "doubt: no token of 1 is less likely than 61 %\n" in shown.err


def test_json_has_every_token(program: Program) -> None:
    shown = program("run", "-p", "x", "--doubt", "--json", session=session())
    entries = shown.object["logprobs"]
    assert [entry["doubt"] for entry in entries] == [0, 0, 1, 3, 0, 0, 3]
    assert [entry["causal_logprob"] for entry in entries][-2:] == [0.0, None]
    assert "doubt:" not in shown.err
    assert "logprobs" not in program("run", "-p", "x", "--json", session=session()).object


def test_a_chat_marks_where_it_is_told_to(program: Program) -> None:
    lines = "a\n/doubt on\na\n/doubt\n/doubt off\na\n"
    shown = program("chat", session=FakeSession(["in Rome."], causal=CAUSAL), stdin=lines)
    assert shown.out == "in Rome.\n[?in] Rome.\nin Rome.\n"
    assert shown.err.count("doubt: of 2 tokens") == 1
    assert shown.err.count("doubt: on\n") == 2
    refused = program("chat", session=session(), stdin="/doubt maybe\n")
    assert "/doubt takes on or off, not 'maybe'" in refused.err
    assert program("chat", "--doubt", session=session(), stdin="a\n").out.startswith("Paris is [?in]")


@pytest.mark.parametrize("text", [" \n", "", "\n\n"])
def test_white_space_is_not_marked(text: str) -> None:
    assert painted(text, 3, Abilities()) == text
    assert doubt_parts(text, 3, Abilities(colors=16)) == [(text, Style())]


def test_sixteen_colours_have_colours_of_their_own() -> None:
    able = Abilities(colors=16)
    assert [painted("a", level, able) for level in (1, 2, 3)] == [
        f"\x1b[4;{code}ma\x1b[0m" for code in (33, 35, 31)
    ]
