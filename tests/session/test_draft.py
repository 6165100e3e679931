"""A guess of the answer: what it changes, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import canvaslm
from canvaslm import Session
from canvaslm.demo.tasks import TASKS
from canvaslm.errors import UsageError
from canvaslm.evals.demo import heldout_items

ITEMS = heldout_items(TASKS["sudoku"], 12, 0)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as session:
        yield session


def steps(session: Session, **options: Any) -> tuple[int, int]:
    """(right answers, denoise steps) of all items."""
    right = taken = 0
    for seed, item in enumerate(ITEMS):
        reply = session.generate(item.messages, seed=seed, **{k: f(item) for k, f in options.items()})
        right += reply.text == item.answer
        taken += sum(canvas.steps for canvas in reply.canvases)
    return right, taken


def test_a_right_guess_takes_fewer_steps(session: Session) -> None:
    free = steps(session)
    told = steps(session, draft=lambda item: item.answer, draft_noise=lambda item: 0.0)
    assert told[0] >= free[0]
    assert told[1] < free[1]


def test_noise_alone_is_no_guess(session: Session) -> None:
    assert steps(session, draft=lambda item: "nonsense", draft_noise=lambda item: 1.0) == steps(session)


def test_the_guess_and_its_end_stand_at_the_first_places(session: Session) -> None:
    request = session.prepare("x", draft="Paris")
    tokens = [*session.tokenizer.encode("Paris"), session.eos_token_ids[0]]
    assert request.draft == dict(enumerate(tokens))
    assert session.prepare("x", draft="").draft == session.prepare("x").draft == {}


@pytest.mark.parametrize(
    ("options", "param"),
    [({"draft": 5}, "draft"), ({"draft": "a", "draft_noise": 2}, "draft_noise"),
     ({"draft": "a", "draft_noise": "b"}, "draft_noise")],
)  # fmt: skip
def test_what_is_no_guess_is_refused_by_name(session: Session, options: dict[str, Any], param: str) -> None:
    with pytest.raises(UsageError) as caught:
        session.prepare("x", **options)
    assert caught.value.param == param
