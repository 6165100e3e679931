"""What the causal reader's word is good for: the best of several answers, doubtful tokens written anew."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ..errors import UsageError
from ..options import AnswerOptions, StreamOptions
from ..text.doubt import doubt_level, mean_causal
from ..text.transcript import ReplyBuilder, Transcript
from ..types import Failed, Finished, Messages, Note, Ranked, Reply, Request
from .options import is_on, numbered
from .structures import parsed

if TYPE_CHECKING:
    from .session import Session

MAX_BEST_OF = 128
# Tokens of this level and above are written once more, and so many behind each, which were chosen together
# with it: measured, docs/log.md.
RETRIED, BEHIND = 2, 3


def run_generate(session: Session, messages: Messages, options: AnswerOptions) -> Reply:
    """One answer, or the best of several. Raises UsageError naming the option at fault, and what made a
    request fail."""
    count, retry = _count(options.get("best_of")), is_on(options, "retry_doubtful")
    own = ("best_of", "retry_doubtful")
    plain = cast(StreamOptions, {name: value for name, value in options.items() if name not in own})
    if count is None and not retry:
        reply = _answers(session, messages, plain, 1)[0]
        return replace(reply, parsed=parsed(plain, reply.text))
    asked: StreamOptions = {**plain, "doubt": True}
    if retry:
        _check_retry(session._request(messages, asked)[0])
    replies = _answers(session, messages, asked, count or 1)
    replies.sort(key=lambda reply: mean_causal(reply.reads), reverse=True)
    ranking = tuple(Ranked(mean_causal(reply.reads), reply.seed, reply.text) for reply in replies)
    best = replace(replies[0], ranking=ranking if count else ())
    best = _retried(session, messages, asked, best) if retry else best
    best = replace(best, parsed=parsed(plain, best.text))
    if is_on(plain, "doubt") or plain.get("logprobs") not in (None, False):
        return best
    return replace(best, logprobs=(), reads=())


def _count(best_of: int | None) -> int | None:
    if best_of is None:
        return None
    if isinstance(best_of, bool) or not isinstance(best_of, int):
        raise UsageError(f"best_of should be a whole number, found {best_of!r}", "best_of")
    if not 1 <= best_of <= MAX_BEST_OF:
        raise UsageError(f"best_of = {best_of} is out of range: 1 to {MAX_BEST_OF}", "best_of")
    return best_of


def _answers(session: Session, messages: Messages, options: StreamOptions, count: int) -> list[Reply]:
    """Several run side by side, behind one prompt that is encoded once."""
    requests: list[Request] = []
    scripts: list[Transcript] = []
    for index in range(count):
        request, script = session._request(messages, numbered(options, index))
        shared = len(request.tokens) - 1 if count > 1 else 0
        requests.append(replace(request, shared=max(0, shared)))
        scripts.append(script)
    builders = [ReplyBuilder() for _ in requests]
    with closing(session.driver.events_of_many(requests, count)) as events:
        for index, event in events:
            builders[index].add(scripts[index].read(event))
            if scripts[index].stopped and not isinstance(event, Finished | Failed):
                session.driver.cancel(event.request_id)
    return [builder.reply() for builder in builders]


def _check_retry(request: Request) -> None:
    """Tokens are told apart by their places, which is what they stand at where canvases are committed
    whole."""
    fixed: dict[str, Any] = {
        "the form of the answer": request.constraint,
        "verify": request.params.verify != "off",
        "decoding = causal": request.params.decoding == "causal",
        "draft": request.draft,
    }
    for name, given in fixed.items():
        if given:
            raise UsageError(f"retry_doubtful does not go with {name}: leave one out", "retry_doubtful")


def _retried(session: Session, messages: Messages, options: StreamOptions, reply: Reply) -> Reply:
    """The answer with its doubtful tokens written once more around the others, which are given; as it was
    where the causal reader thinks no better of that."""
    doubtful = {i for i, read in enumerate(reply.reads) if doubt_level(read.logprob) >= RETRIED}
    if not doubtful:
        return reply
    anew = {place + i for place in doubtful for i in range(BEHIND + 1)}
    sure = {place: token for place, token in enumerate(reply.tokens) if place not in anew}
    given = {**sure, **(options.get("given") or {})}
    again = _answers(session, messages, {**options, "seed": reply.seed + 1, "given": given}, 1)[0]
    before, after = mean_causal(reply.reads), mean_causal(again.reads)
    if after <= before:
        return reply
    told = (
        f"{len(doubtful)} doubtful token{'s' * (len(doubtful) > 1)} and what follows written once more: "
        f"mean causal log-probability {before:.3f}, then {after:.3f}"
    )
    notes = (*again.notes, Note("doubt_retried", told))
    return replace(again, ranking=reply.ranking, notes=notes, seed=reply.seed)


__all__ = ["MAX_BEST_OF", "run_generate"]
