"""`canvaslm decide`: questions in short, as JSON and from a file; what is printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import canvaslm
from canvaslm.cli.decide import short_question
from canvaslm.errors import UsageError
from canvaslm.session import Session

from .conftest import Program

PERU = "Name the capital of Peru. :: Lima | Quito"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as loaded:
        yield loaded


@pytest.fixture
def state(tmp_path: Path) -> str:
    path = tmp_path / "state.txt"
    path.write_text("\n")
    return str(path)


def test_answers_in_lines_and_as_one_object(program: Program, session: Session, state: str) -> None:
    shown = program("decide", state, "-q", PERU, "-q", "It rains.", "-q", "How? :: no < yes", session=session)
    first, second, third = shown.out.splitlines()
    assert shown.code == 0
    assert first == "Name the capital of Peru.: Lima 1.000, Quito 0.000"
    assert 0 <= float(second.removeprefix("It rains.: ")) <= 1
    assert third.startswith("How?: 0.") and "yes" in third
    found = program("decide", state, "-q", PERU, "--json", session=session).object
    (answer,) = found["answers"]
    assert answer["best"] == "Lima" and answer["label_mass"] > 0.5 and found["rows"] == 1
    expected = session.decide("", short_question(PERU)[1])[0]
    assert [p["probability"] for p in answer["probabilities"]] == list(expected.probabilities)


def test_questions_from_a_file_and_options(
    program: Program, session: Session, state: str, tmp_path: Path
) -> None:
    asked = [
        {"type": "choice", "name": "peru", "instructions": "Capital of Peru?",
         "choices": [{"value": "Lima"}, {"value": True}]},
        {"type": "predicate", "instructions": "It rains."},
    ]  # fmt: skip
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(asked))
    shown = program(
        "decide", state, "--questions", str(file), "--labels", "letters", "--samples", "2", "--permute", "2",
        "--json", session=session,
    )  # fmt: skip
    found = shown.object
    assert [one["name"] for one in found["answers"]] == ["peru", None] and found["rows"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no question"),
        (("-q", "{"), "no valid JSON"),
        (("-q", '{"type": "box", "instructions": ""}'), "question.type should be predicate"),
        (("-q", PERU, "--labels", "words"), "labels = 'words'"),
        (("--questions", "/nowhere"), "there is no such file"),
    ],
)
def test_what_cannot_be_asked_is_told(
    program: Program, session: Session, state: str, arguments: tuple[str, ...], message: str
) -> None:
    shown = program("decide", state, *arguments, session=session)
    assert shown.code in (2, 3) and message in shown.err


def test_short_questions() -> None:
    assert short_question("It rains.")[1].kind == "predicate"
    kind = short_question("Which? :: a < b | c")[1]
    assert kind.kind == "choice" and [o.text for o in kind.options] == ["a < b", "c"]
    name, asked = short_question('{"type": "score", "name": "u", "instructions": "?", "levels": '
                                 '[{"label": "a"}, {"label": "b"}]}')  # fmt: skip
    assert name == "u" and asked.kind == "score"
    with pytest.raises(UsageError, match="twice"):
        short_question("Which? :: a | a")
