"""Asks the head what follows states of encoded tokens: what the causal reader says, place by place.

A causal encoder is a language model with the denoiser's weights and head, and is trained as one: the state
of a token, put through the head, is a distribution of the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import Model
from ..ops import noise
from ..ops.predict import SAMPLE_TILE, Draw, Prediction, draws_of, predict
from ..ops.targets import NO_TARGET
from .rules import RowRules, joined

_READER = -1  # the step of the reader's random numbers: canvases count theirs from 0


@dataclass(frozen=True)
class HeadQuery:
    """What follows n states [n, H] of one row. `targets`: n tokens to judge, or none.

    `rules` with `places` (each place's row of its bits) restrict what may follow. With a seed tokens are
    drawn, by random numbers of the answer's places from `first` on.
    """

    states: Tensor
    targets: tuple[int, ...] = ()
    temperature: float = 1.0
    top: int = 0
    top_k: int = 0
    rules: RowRules | None = None
    places: tuple[int, ...] = ()
    seed: int | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True)
class HeadAnswers:
    """Of n places. Log-probabilities and entropies in nats, of the distribution that was asked for."""

    logprob: tuple[float, ...]  # of the targets
    rank: tuple[int, ...]
    entropy: tuple[float, ...]
    best: tuple[int, ...]
    best_logprob: tuple[float, ...]
    drawn: tuple[int, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]

    def part(self, start: int, stop: int) -> HeadAnswers:
        columns = (self.logprob, self.rank, self.entropy, self.best, self.best_logprob, self.drawn, self.top)
        return HeadAnswers(*(column[start:stop] for column in columns))  # type: ignore[arg-type]


def ask(model: Model, questions: Sequence[HeadQuery]) -> list[HeadAnswers]:
    """The answers, in order. What one is told depends on no other question."""
    free = [i for i, question in enumerate(questions) if question.rules is None]
    found: dict[int, HeadAnswers] = {}
    if free:
        found |= zip(free, _ask_free(model, [questions[i] for i in free]), strict=True)
    for i, question in enumerate(questions):
        if question.rules is not None:
            found[i] = _ask_ruled(model, question)
    return [found[i] for i in range(len(questions))]


def _ask_free(model: Model, questions: Sequence[HeadQuery]) -> Iterator[HeadAnswers]:
    """All places as rows of one place."""
    count = sum(map(len, questions))
    spare = max(0, model.fewest - count)
    states = torch.cat([q.states for q in questions])
    states = torch.cat((states, states.new_zeros(spare, states.shape[1])))
    draws = [one for q in questions for one in _draws(model, q)]
    draws += [_no_draw(model, 1)] * spare

    def each(name: str, default: Any) -> list[Any]:
        return [getattr(q, name) for q in questions for _ in range(len(q))] + [default] * spare

    said = _predict(
        model, states[:, None], draws,
        temperature=each("temperature", 1.0), top=each("top", 0), top_k=each("top_k", 0),
        targets=[[t] for q in questions for t in _targets(q)] + [[NO_TARGET]] * spare,
    )  # fmt: skip
    whole = _answers(said, count, each("top", 0)[:count])
    start = 0
    for question in questions:
        yield whole.part(start, start + len(question))
        start += len(question)


def _ask_ruled(model: Model, question: HeadQuery) -> HeadAnswers:
    """One row of n places: its rules are said once."""
    spare = max(0, model.fewest - len(question))
    states = torch.cat((question.states, question.states.new_zeros(spare, question.states.shape[1])))
    draws = [*_draws(model, question), _no_draw(model, spare)]
    whole = Draw(torch.cat([d.gumbel for d in draws]), torch.cat([d.uniform for d in draws]))
    said = _predict(
        model, states[None], [whole],
        temperature=[question.temperature], top=[question.top], top_k=[question.top_k],
        targets=[[*_targets(question), *[NO_TARGET] * spare]],
        **joined([(question.rules, [*question.places, *[-1] * spare])], model.device),
    )  # fmt: skip
    return _answers(said, len(question), [question.top] * len(question))


def _predict(model: Model, states: Tensor, draws: list[Draw], **how: Any) -> Prediction:
    return predict(
        states, model.head, model.embedding, softcap=model.config.softcap, draws=draws, soft=False,
        forbidden=model.config.facts.mask_token_id, **how,
    )  # fmt: skip


def _targets(question: HeadQuery) -> tuple[int, ...]:
    return question.targets or (NO_TARGET,) * len(question)


def _draws(model: Model, question: HeadQuery) -> list[Draw]:
    """A row of random numbers for each place."""
    if question.seed is None:
        return [_no_draw(model, 1)] * len(question)
    indices = range(question.first, question.first + len(question))
    keys = torch.tensor([noise.canvas_key(question.seed, i) for i in indices], device=model.device)
    return draws_of(keys, torch.full_like(keys, _READER), 1, model.config.vocab_size)


def _no_draw(model: Model, places: int) -> Draw:
    tiles = -(-model.config.vocab_size // SAMPLE_TILE)
    zeros = torch.zeros(places, dtype=torch.float64, device=model.device)
    return Draw(torch.zeros(places, tiles, device=model.device), zeros)


def _answers(said: Prediction, count: int, tops: list[int]) -> HeadAnswers:
    """Of the first `count` places, copied from where they are."""

    def column(values: Tensor | None) -> tuple[Any, ...]:
        assert values is not None
        return tuple(values.reshape(-1)[:count].tolist())

    top: tuple[Any, ...] = ((),) * count
    if said.top_tokens is not None and said.top_logprobs is not None:
        tokens, logprobs = (x.flatten(0, 1)[:count].tolist() for x in (said.top_tokens, said.top_logprobs))
        top = tuple(
            tuple(zip(t[:n], v[:n], strict=True)) for t, v, n in zip(tokens, logprobs, tops, strict=True)
        )
    return HeadAnswers(
        column(said.target_logprob), column(said.target_rank), column(said.entropy), column(said.argmax),
        column(said.logprob), column(said.sampled), top,
    )  # fmt: skip


__all__ = ["HeadAnswers", "HeadQuery", "ask"]
