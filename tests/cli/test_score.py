"""`canvaslm score`: a table of tokens, lines of texts, one object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import canvaslm
from canvaslm.session import Session

from .conftest import Program


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as loaded:
        yield loaded


def test_one_text_is_shown_token_by_token(program: Program, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("capital\r\nof é".encode())
    shown = program("score", str(path), session=session)
    assert shown.code == 0
    heading, *rows, last = shown.out.splitlines()
    assert heading.split() == ["log-p", "rank", "entropy", "token"]
    scored = session.score("", "capital\r\nof é", raw=True)
    assert [float(row.split()[0]) for row in rows] == [round(t.logprob or 0, 3) for t in scored.tokens]
    assert [int(row.split()[1]) for row in rows] == [t.rank for t in scored.tokens]
    assert last.startswith(f"{len(scored.tokens)} tokens, log-probability {scored.logprob:.3f}")


def test_several_texts_have_a_line_each_or_one_object(program: Program, session: Session) -> None:
    arguments = ("score", "-p", "capital of France", "--text", "Paris", "--text", "Rome")
    lines = program(*arguments, session=session).out.splitlines()
    scores = session.score_many("capital of France", ["Paris", "Rome"])
    assert [line.endswith(repr(s.text)) for line, s in zip(lines, scores, strict=True)] == [True, True]
    found = program(*arguments, "--json", session=session).object
    assert [one["logprob"] for one in found["texts"]] == [s.logprob for s in scores]
    assert [t["id"] for t in found["texts"][0]["tokens"]] == [t.id for t in scores[0].tokens]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no text"),
        (("/nowhere",), "there is no such file"),
        (("--text", ""), "the text is empty"),
    ],
)
def test_what_cannot_be_scored_is_told(
    program: Program, session: Session, arguments: tuple[str, ...], message: str
) -> None:
    shown = program("score", *arguments, session=session)
    assert shown.code in (2, 3) and message in shown.err
