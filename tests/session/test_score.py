"""Log-probabilities of given texts are those of a plain forward pass, and the same alone and together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from canvaslm.errors import PromptTooLong, UsageError
from canvaslm.model import PlainContext
from canvaslm.session import Session
from tests.server.world import tiny_session

TEXTS = ["Paris", "Rome, or so it is said", "  two\nlines é \U0001f600"]


@pytest.fixture(scope="module")
def session() -> Session:
    return tiny_session()


@torch.no_grad()
def plain_logprobs(session: Session, tokens: list[int]) -> torch.Tensor:
    """[L, V]: row i is what follows token i."""
    model: Any = session.engine.runner.model
    context = PlainContext(model.config)
    hidden = model.encode(torch.tensor([tokens]), torch.arange(len(tokens))[None], context, hidden=True)
    return torch.as_tensor(model.logits(hidden[0])).log_softmax(-1)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_a_score_is_that_of_a_plain_pass(session: Session, text: str, raw: bool) -> None:
    scored = session.score("Which city?", text, raw=raw)
    prompt = session.encode("Which city?", raw=raw)
    tokens = session.tokenizer.encode(text)
    logprobs = plain_logprobs(session, [*prompt, *tokens])
    assert [token.id for token in scored.tokens] == tokens
    assert b"".join(token.data for token in scored.tokens).decode() == text == scored.text
    for i, token in enumerate(scored.tokens, len(prompt)):
        row = logprobs[i - 1]
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-5, rel=1e-5)
        assert token.rank == 1 + int((row > row[token.id]).sum())
        assert token.entropy == pytest.approx(float(-(row.exp() * row).sum()), abs=3e-5)
    assert scored.logprob == sum(token.logprob or 0 for token in scored.tokens)
    assert scored.mean == scored.logprob / len(tokens)
    assert scored.perplexity == math.exp(-scored.mean)
    assert scored.usage.prompt_tokens == len(prompt) + len(tokens)
    assert scored.usage.completion_tokens == 0


def test_scores_are_the_same_alone_and_together(session: Session) -> None:
    question = "Which city of those that lie at a river? " * 8
    together = session.score_many(question, TEXTS * 4)
    again = session.score_many(question, list(reversed(TEXTS)))
    alone = [tiny_session().score(question, text) for text in TEXTS]
    for text, one in zip(TEXTS, alone, strict=True):
        others = [scored for scored in [*together, *again] if scored.text == text]
        assert len(others) == 5
        assert {scored.tokens for scored in others} == {one.tokens}


def test_the_prompt_is_encoded_once() -> None:
    session = tiny_session()
    question = "Which city? " * 10
    found = session.score_many(question, TEXTS)
    before = len(session.encode(question)) - 1
    assert [scored.usage.cached_tokens for scored in found] == [0, before, before]


def test_nothing_before_a_token_says_nothing_of_it(session: Session) -> None:
    scored = session.score("", "hello", raw=True)
    assert all(token.logprob is not None for token in scored.tokens)  # BOS stands before it


def test_a_chat_may_have_turns_and_a_system_message(session: Session) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    told = session.score([*turns, {"role": "user", "content": "Which city?"}], "Paris", system="Be brief.")
    assert told.usage.prompt_tokens > session.score("Which city?", "Paris").usage.prompt_tokens


def test_generation_is_as_it_was_in_between(session: Session) -> None:
    first = session.generate("Which city?", seed=3)
    session.score_many("Which city?", TEXTS)
    assert session.generate("Which city?", seed=3).tokens == first.tokens


@pytest.mark.parametrize(
    ("call", "message", "param"),
    [
        (lambda s: s.score("Hi", ""), "the text is empty", "text"),
        (lambda s: s.score("Hi", 5), "text", "text"),
        (lambda s: s.score_many("Hi", "Paris"), "texts should be several texts", "texts"),
        (lambda s: s.score("Hi", "Paris", rwa=True), "did you mean 'raw'", "rwa"),
        (lambda s: s.score([], "Paris", raw=True), "raw takes a prompt string", "raw"),
    ],
)
def test_bad_wishes_are_named(session: Session, call: Any, message: str, param: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call(session)
    assert caught.value.param == param


def test_a_text_that_is_too_long_is_refused(session: Session) -> None:
    with pytest.raises(PromptTooLong):
        session.score("Hi", "long " * 600)
    assert session.score_many("Hi", []) == []
