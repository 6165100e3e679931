"""The demo model with thinking on: budgets of its thoughts, free and before answers of a guaranteed form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

import canvaslm
from canvaslm.session import Session

PROMPT = "Sort: 42 17 88"
NUMBER = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "free": ({}, r"[\s\S]+"),
    "regex": ({"regex": "[0-9]{2}( [0-9]{2}){2}"}, r"[0-9]{2}( [0-9]{2}){2}"),
    "choice": ({"choice": ["yes", "no"]}, "yes|no"),
    "schema": ({"schema": NUMBER}, r'\s*\{\s*"a"\s*:\s*-?[0-9]+\s*\}\s*'),
    "grammar": ({"grammar": "root ::= [0-9]+"}, "[0-9]+"),
}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as session:
        yield session


def ask(session: Session, form: str, budget: int, **options: Any) -> canvaslm.Reply:
    asked = {"seed": 1, "thinking": True, "thinking_budget": budget, "max_new_tokens": 128}
    return session.generate(PROMPT, **{**asked, **FORMS[form][0], **options})


@pytest.mark.parametrize("budget", [0, 3, 8])
@pytest.mark.parametrize("form", FORMS)
def test_a_thought_ends_at_its_budget_and_the_answer_has_its_form(
    session: Session, form: str, budget: int
) -> None:
    reply = ask(session, form, budget)
    assert reply.usage.reasoning_tokens == budget
    assert re.fullmatch(FORMS[form][1], reply.text)
    assert [note.kind for note in reply.notes] == ["thinking_budget"] and reply.finish_reason == "stop"


@pytest.mark.parametrize("form", FORMS)
def test_a_budget_that_is_not_reached_changes_nothing(session: Session, form: str) -> None:
    free, bounded = ask(session, form, -1), ask(session, form, 40)
    assert bounded.tokens == free.tokens and bounded.thinking and not bounded.notes
    assert [canvas.steps for canvas in bounded.canvases] == [canvas.steps for canvas in free.canvases]


def test_what_is_streamed_is_the_reply(session: Session) -> None:
    for settle in (0, 1):
        options: dict[str, Any] = {"settle_steps": settle, "thinking_budget": 8, "thinking": True, "seed": 1}
        pieces: list[tuple[str, str]] = []
        for event in session.stream(PROMPT, drafts=True, **options):
            if not isinstance(event, canvaslm.Draft | canvaslm.Failed):
                pieces.append((event.thinking, event.text))
        reply = session.generate(PROMPT, **options)
        assert "".join(thinking for thinking, _ in pieces) == reply.thinking
        assert "".join(text for _, text in pieces) == reply.text
        assert reply.usage.reasoning_tokens <= 8


def test_without_thinking_a_budget_means_nothing(session: Session) -> None:
    plain = session.generate(PROMPT, seed=1)
    assert session.generate(PROMPT, seed=1, thinking_budget=0).tokens == plain.tokens
