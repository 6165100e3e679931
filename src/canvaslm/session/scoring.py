"""Log-probabilities of given texts, for one caller."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..options import ScoreOptions
from ..text.scores import Scored, token_scores
from ..types import Failed, Finished, Messages, Params, Request
from .options import check_names
from .template import check_text

if TYPE_CHECKING:
    from .session import Session

# Nothing is denoised; the seed is said so that none is drawn.
_PARAMS = Params(max_new_tokens=1, seed=0)


def run_score(
    session: Session, messages: Messages, texts: Iterable[str], options: ScoreOptions
) -> list[Scored]:
    """The texts behind one prompt, read together. Raises UsageError naming the option at fault, and what made
    a request fail."""
    requests, asked = plan_score(session, messages, texts, options)
    ends: dict[int, Finished] = {}
    with closing(session.driver.events_of_many(requests, session.engine.scheduler.max_rows)) as events:
        for index, event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                ends[index] = event
    made = []
    for index, (request, text) in enumerate(zip(requests, asked, strict=True)):
        tokens = request.tokens[request.prompt_first :]
        scores = token_scores(session.tokenizer, tokens, ends[index].prompt_reads)
        made.append(Scored(text, scores, ends[index].usage, ends[index].timings))
    return made


def plan_score(
    session: Session, messages: Messages, texts: Iterable[str], options: ScoreOptions
) -> tuple[list[Request], list[str]]:
    """The engine's requests, and the texts. What all begin with is encoded once."""
    check_names(options, ScoreOptions.__annotations__)
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise UsageError("texts should be several texts; for one there is score", "texts")
    prompt = session.encode(
        messages,
        system=options.get("system"),
        thinking=options.get("thinking", False),
        raw=options.get("raw", False),
    )
    asked = list(texts)
    # The state of the last token of the prompt is asked about, so that token is encoded with each text.
    shared = max(0, len(prompt) - 1)
    identity = f"score:{_digest(prompt)}" if shared else ""
    adapters = session.adapters.uses(options.get("adapter"))
    requests = [
        Request(
            (*prompt, *_tokens(session, text)),
            _PARAMS,
            prompt_logprobs=0,
            prompt_first=len(prompt),
            prompt_only=True,
            shared=shared,
            identity=identity,
            adapters=adapters,
        )
        for text in asked
    ]
    return requests, asked


def _tokens(session: Session, text: Any) -> list[int]:
    check_text(text, "text")
    tokens = session.tokenizer.encode(text)
    if not tokens:
        raise UsageError("the text is empty: there is nothing to score", "text")
    return tokens


def _digest(tokens: list[int]) -> str:
    return hashlib.blake2b(repr(tokens).encode(), digest_size=16).hexdigest()


__all__ = ["plan_score", "run_score"]
