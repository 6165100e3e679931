"""What the causal reader thinks of an answer's tokens, asked of a session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import canvaslm
from canvaslm.errors import UsageError
from canvaslm.model import PlainContext
from canvaslm.types import Committed

ASKED = "capital of France"


@pytest.fixture(scope="module")
def session() -> Iterator[canvaslm.Session]:
    with canvaslm.load() as loaded:
        yield loaded


@torch.no_grad()
def plainly_read(session: canvaslm.Session, prompt: list[int], tokens: tuple[int, ...]) -> list[float]:
    model: Any = session.engine.runner.model
    ids = torch.tensor([[*prompt, *tokens]])
    context = PlainContext(model.config)
    states = model.encode(ids, torch.arange(ids.shape[1])[None], context, hidden=True)
    logprobs = model.logits(states[0]).log_softmax(-1)
    return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens)]


def test_doubt_tells_of_each_token_what_a_plain_pass_says(session: canvaslm.Session) -> None:
    reply = session.generate(ASKED, seed=0, doubt=True, logprobs=2)
    wanted = plainly_read(session, session.encode(ASKED), reply.tokens)
    assert [token.causal for token in reply.logprobs] == pytest.approx(
        wanted[: len(reply.logprobs)], abs=1e-4
    )
    assert [read.logprob for read in reply.reads] == pytest.approx(wanted, abs=1e-4)
    assert all(token.rank is not None and len(token.top) == 2 for token in reply.logprobs)


def test_doubt_brings_log_probabilities_and_changes_nothing_else(session: canvaslm.Session) -> None:
    plain, told = session.generate(ASKED, seed=3), session.generate(ASKED, seed=3, doubt=True)
    assert (plain.logprobs, plain.reads) == ((), ())
    assert (told.tokens, told.canvases, told.finish_reason) == (
        plain.tokens, plain.canvases, plain.finish_reason,
    )  # fmt: skip
    assert "".join(token.token for token in told.logprobs) == told.text
    without = session.generate(ASKED, seed=3, logprobs=0).logprobs
    assert [replace(token, causal=None, rank=None) for token in told.logprobs] == list(without)
    assert all(token.causal is None and token.rank is None for token in without)


def test_events_carry_it(session: canvaslm.Session) -> None:
    events = [e for e in session.stream(ASKED, seed=0, doubt=True) if isinstance(e, Committed)]
    assert all(token.causal is not None for event in events for token in event.token_logprobs)
    assert [len(event.reads) for event in events] == [len(event.tokens) for event in events]


def test_what_is_no_switch_is_refused(session: canvaslm.Session) -> None:
    with pytest.raises(UsageError, match="doubt should be true or false") as caught:
        session.generate(ASKED, doubt="yes")  # type: ignore[arg-type]
    assert caught.value.param == "doubt"
