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


WRONG = "Sort: 46 40 25"  # with seed 1 the demo model is wrong, and its causal reader knows


def test_the_best_of_several_is_that_of_the_causal_reader(session: canvaslm.Session) -> None:
    best = session.generate(WRONG, seed=1, best_of=4)
    alone = [session.generate(WRONG, seed=1 + i, doubt=True) for i in range(4)]
    means = {reply.seed: sum(read.logprob for read in reply.reads) / len(reply.reads) for reply in alone}
    assert alone[0].text != "25 40 46"
    assert best.text == "25 40 46"
    assert [one.seed for one in best.ranking] == sorted(means, key=lambda seed: -means[seed])
    assert [one.mean_causal for one in best.ranking] == pytest.approx(sorted(means.values())[::-1], abs=1e-4)
    assert (best.seed, best.text) == (best.ranking[0].seed, best.ranking[0].text)
    assert (best.logprobs, best.reads) == ((), ())
    assert session.generate(WRONG, seed=1, best_of=1, logprobs=0).ranking[0].text == alone[0].text


def test_stop_strings_end_each_of_several(session: canvaslm.Session) -> None:
    best = session.generate(WRONG, seed=1, best_of=3, stop=" ")
    assert {one.text for one in best.ranking} == {"25"}
    assert best.finish_reason == "stop"


def test_doubtful_tokens_are_written_once_more(session: canvaslm.Session) -> None:
    plain = session.generate(WRONG, seed=1, doubt=True)
    again = session.generate(WRONG, seed=1, retry_doubtful=True, doubt=True)
    (note,) = again.notes
    assert note.kind == "doubt_retried"
    assert sum(r.logprob for r in again.reads) > sum(r.logprob for r in plain.reads)
    changed = [i for i, (a, b) in enumerate(zip(plain.tokens, again.tokens, strict=True)) if a != b]
    assert changed
    assert changed[0] == min(i for i, read in enumerate(plain.reads) if read.logprob < -1)
    assert (again.text, again.seed) == ("25 40 46", 1)
    sure = session.generate(ASKED, seed=0, retry_doubtful=True)
    assert (sure.text, sure.notes, sure.ranking) == ("Paris", (), ())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("best_of", {"best_of": 0}),
        ("best_of", {"best_of": True}),
        ("best_of", {"best_of": 129}),
        ("retry_doubtful", {"retry_doubtful": 1}),
        ("retry_doubtful", {"retry_doubtful": True, "regex": "a+"}),
        ("retry_doubtful", {"retry_doubtful": True, "verify": "greedy"}),
        ("retry_doubtful", {"retry_doubtful": True, "decoding": "causal"}),
    ],
)
def test_what_cannot_be_ranked_is_refused(session: canvaslm.Session, name: str, options: Any) -> None:
    with pytest.raises(UsageError) as caught:
        session.generate(ASKED, **options)
    assert caught.value.param == name
