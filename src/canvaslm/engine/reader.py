"""The second reader: what becomes of canvases that the causal reader judges, and of answers that it writes.

*Verified denoising*: a finished canvas is encoded as it stands, which gives every token's probability given
all before it. What the reader accepts is committed; at the first token that it refuses its own comes instead,
and the next canvas begins behind that. The pass over the canvas is its commit: keys and values of what is
accepted stay.

Accepting while a draft equals what the reader draws itself is the rejection rule of speculative sampling for
drafts that are certain (Leviathan, Kalman, Matias 2023): the answer is then the reader's own, token for
token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UsageError
from ..model import ModelConfig
from ..types import Committed, FinishReason, Params, Projection, Request, TokenRead
from .asking import HeadAnswers, HeadQuery

if TYPE_CHECKING:
    from .guards import Standing
    from .sequence import Sequence

# `verify = checked` refuses a token only where the reader gives another one this probability, and the token
# less than this share of that: measured, docs/verify.md. A canvas goes to it as soon as it is certain, or
# after so many steps, and after a refusal after fewer: behind it the reader is right more often than not.
SURE, UNLIKELY = math.log(0.9), math.log(0.1)
CHECKED_STEPS, CHECKED_AGAIN = 4, 2
_SLACK = 1e-6  # nats


@dataclass
class Reader:
    """Of one sequence, what the causal reader has to do with it."""

    before: Tensor | None = None  # [H], the state of the last token that is context
    heard: Heard | None = None  # in the last pass
    judged: tuple[Projection, Standing] | None = None  # of the canvas that waits for its verdict
    unread: Committed | None = None  # waits for what the reader says of its tokens
    told: list[TokenRead] = field(default_factory=list)  # of these so far
    ending: FinishReason | None = None  # the answer is complete but for that
    prompt: list[TokenRead | None] = field(default_factory=list)
    reads: int = 0  # passes over the live canvas
    # {place: token} of that canvas, accepted or put right, and what of it would have stood.
    again: dict[int, int] = field(default_factory=dict)
    before_again: tuple[Projection, Standing] | None = None

    def begin_canvas(self) -> None:
        """The live canvas is committed: what is known of it goes."""
        self.reads, self.again, self.before_again = 0, {}, None


@dataclass(frozen=True)
class Heard:
    """What a pass says of n tokens that a row has encoded."""

    states: Tensor  # [n, H]
    report: HeadAnswers | None = None  # of the tokens, as they follow each other
    # Likewise under the row's own rules and temperature; or of the next token.
    choice: HeadAnswers | None = None

    def reads(self) -> list[TokenRead]:
        """The report, place by place."""
        said = self.report
        if said is None:
            return []
        columns = zip(said.logprob, said.rank, said.entropy, said.top, strict=True)
        return [TokenRead(*column) for column in columns]


def verified(params: Params) -> Params:
    """The params as canvases are denoised that the reader judges."""
    if params.verify == "off" or params.decoding == "causal":
        return replace(params, verify="off", verify_steps=0)
    params = replace(params, settle_steps=0)  # nothing is sent before it is judged
    if params.verify != "checked":
        return params
    return replace(params, stability_threshold=0, verify_steps=params.verify_steps or CHECKED_STEPS)


def reader_of(request: Request, params: Params) -> Reader | None:
    """None where the causal reader has nothing to do."""
    asked = request.reads or request.prompt_logprobs is not None or request.prompt_only
    return Reader() if asked or params.verify != "off" or params.decoding == "causal" else None


def check_reader(request: Request, params: Params, config: ModelConfig, top: int) -> None:
    """Raises UsageError for what the causal reader cannot do."""
    if reader_of(request, params) is None:
        return
    if config.facts.commit_attention != "causal" or config.facts.logit_shift:
        raise UsageError(
            f"models of type {config.family} have no causal reader: leave out verify, decoding, "
            "prompt_logprobs, doubt and the like",
            "verify" if params.verify != "off" else "doubt" if request.reads else "decoding",
        )
    if request.prompt_logprobs is not None and not 0 <= request.prompt_logprobs <= top:
        raise UsageError(
            f"prompt_logprobs = {request.prompt_logprobs} is not in 0 .. {top}", "prompt_logprobs"
        )
    if params.decoding == "causal":
        names = ("constraint", "given", "allowed", "draft")
        wanted = next((name for name in names if getattr(request, name)), None)
        if wanted is not None:
            raise UsageError(
                f"decoding = causal writes token after token and knows no {wanted}: leave one of them out",
                "decoding",
            )


def questions(sequence: Sequence, tokens: list[int], states: Tensor, last: bool) -> list[HeadQuery | None]:
    """[report, choice] about tokens just encoded, with their states [n, H]. last: nothing is pending."""
    reader = sequence.reader
    assert reader is not None
    known = states[:-1] if reader.before is None else _behind(reader.before, states)
    if _wants_prompt(sequence):  # the head is asked of no token that nobody asks about
        known = known[
            max(0, len(known) - (len(sequence.encoded) + len(tokens) - sequence.request.prompt_first)) :
        ]
    targets = tuple(tokens[len(tokens) - len(known) :])
    report = own = None
    if reader.judged is not None:
        own = choice(sequence, known, targets)
        report = None if _is_plain(own) else HeadQuery(known, targets)
    elif reader.unread is not None or _wants_prompt(sequence):
        report = HeadQuery(known, targets, top=(sequence.request.prompt_logprobs or 0))
    elif sequence.is_causal and last and not sequence.request.prompt_only:
        own = choice(sequence, states[-1:], ())
    return [one if one is not None and len(one) else None for one in (report, own)]


def _behind(before: Tensor, states: Tensor) -> Tensor:
    """The states that tokens follow: of the token before each."""
    return torch.cat((before[None], states[:-1]))


def _wants_prompt(sequence: Sequence) -> bool:
    return sequence.request.prompt_logprobs is not None and not sequence.reports


def choice(sequence: Sequence, states: Tensor, targets: tuple[int, ...]) -> HeadQuery:
    """Under the rules of the answer's next places; at the answer's temperature where tokens are drawn."""
    params = sequence.params
    places: tuple[int, ...] = ()
    if sequence.rules is not None:
        places = tuple(sequence.rules.places(len(sequence.output), 0, len(states), sequence.start))
    draws = _draws(params)
    return HeadQuery(
        states, targets,
        temperature=params.temperature if draws else 1.0, top_k=params.top_k if draws else 0,
        rules=sequence.rules, places=places, seed=sequence.seed if draws else None,
        first=len(sequence.output),
    )  # fmt: skip


def _is_plain(question: HeadQuery) -> bool:
    return question.rules is None and question.temperature == 1 and not question.top_k


def first_refused(params: Params, tokens: Items[int], said: HeadAnswers, fixed: Items[bool]) -> int | None:
    """Which of the tokens the reader refuses first; None: it accepts all. Those that are `fixed` are not
    its matter."""
    for i, token in enumerate(tokens):
        if not fixed[i] and _refuses(params, token, said, i):
            return i
    return None


def _refuses(params: Params, token: int, said: HeadAnswers, i: int) -> bool:
    if params.verify == "threshold":
        return said.logprob[i] < _log(params.verify_threshold) + said.best_logprob[i] - _SLACK
    if params.verify == "checked":
        return said.best_logprob[i] > SURE and said.logprob[i] < UNLIKELY + said.best_logprob[i]
    return token != own_token(params, said, i)


def own_token(params: Params, said: HeadAnswers, i: int) -> int:
    """The reader's own token of a place."""
    return said.drawn[i] if _draws(params) else said.best[i]


def _draws(params: Params) -> bool:
    """Whether the reader's own tokens are drawn; otherwise they are the likeliest."""
    return params.temperature > 0 and (params.verify == "sample" or params.decoding == "causal")


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


__all__ = [
    "CHECKED_AGAIN", "CHECKED_STEPS", "Heard", "Reader", "check_reader", "choice", "first_refused",
    "own_token", "questions", "reader_of", "verified",
]  # fmt: skip
