"""Many rows at once, each at its own step with its own parameters, against the plain rules: to the bit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from canvaslm.diffusion import Canvas, RowParams, advance, progress, settle, start_canvas
from canvaslm.ops import noise
from canvaslm.ops.predict import Prediction, draw, draws_of
from canvaslm.types import Params

from .plain import PlainCanvas

PLACES, VOCAB, EOS = 24, 1500, (7, 8)


def prediction(generator: torch.Generator, argmax: torch.Tensor, certainty: float) -> Prediction:
    """Of one row: like what was said before, but for a few places."""
    stays = torch.rand(1, PLACES, generator=generator) < certainty
    other = torch.randint(12, (1, PLACES), generator=generator)
    entropy = torch.rand(1, PLACES, generator=generator) ** 4 * (1.05 - certainty)
    sampled = torch.randint(VOCAB, (1, PLACES), generator=generator)
    return Prediction(sampled, torch.where(stays, argmax, other), entropy, -entropy, None)


def params_of(dice: random.Random) -> Params:
    return Params(
        sampler=dice.choice(["entropy_bound", "probability_threshold", "ancestral"]),
        max_denoising_steps=dice.randint(1, 14),
        entropy_bound=dice.choice([0.0, 0.1, 0.5]),
        accept_threshold=dice.choice([0.7, 0.9]),
        temperature=dice.choice([0.0, 1.0]),
        stability_threshold=dice.randint(0, 3),
        confidence_threshold=dice.choice([0.005, 0.02, 0.1]),
        eos_aware_stopping=dice.random() < 0.5,
        settle_steps=dice.choice([0, 1, 2]),
        settle_entropy=dice.choice([0.01, 0.05]),
    )


class Twins:
    """One row, advanced among others and by the plain rules."""

    def __init__(self, number: int) -> None:
        dice = random.Random(number)
        self.params, self.certainty = params_of(dice), dice.choice([0.9, 0.98, 1.0])
        self.eos = EOS[: dice.randint(0, 2)]
        seed, index = dice.randrange(2**63), dice.randrange(5)
        given = {dice.randrange(PLACES): dice.randrange(VOCAB) for _ in range(dice.randint(0, 3))}
        self.fast: Canvas = start_canvas(seed, index, PLACES, VOCAB, given=given)
        self.plain = PlainCanvas.start(seed, index, PLACES, VOCAB, given)
        self.row = RowParams.of(self.params, self.eos)
        self.generator = torch.Generator().manual_seed(number)

    def predict(self) -> Prediction:
        return prediction(self.generator, self.fast.argmax, self.certainty)

    def check(self, known: Any) -> None:
        fast, plain = self.fast, self.plain
        assert fast.accepted is not None
        assert plain.accepted is not None
        assert plain.entropy is not None
        for one, other in (
            (fast.tokens, plain.tokens), (fast.argmax, plain.argmax), (fast.frozen, plain.frozen),
            (fast.accepted, plain.accepted), (fast.held, torch.tensor(plain.held)),
        ):  # fmt: skip
            assert torch.equal(one[0], other)
        assert (known.step, known.stop, known.settled) == (plain.step, plain.stop, plain.settled)
        assert known.mean_entropy == float(plain.entropy.mean())


@pytest.mark.parametrize("round_", range(12))
def test_rows_at_different_steps_equal_the_plain_rules(round_: int) -> None:
    """Rows come and go, so that every pass joins others at other steps."""
    dice = random.Random(round_)
    waiting = [Twins(100 * round_ + i) for i in range(20)]
    live: list[Twins] = []
    ends = set()
    while waiting or live:
        while waiting and len(live) < 6 and (not live or dice.random() < 0.5):
            live.append(waiting.pop())
        said = [twins.predict() for twins in live]
        canvas = Canvas.join([twins.fast for twins in live])
        params = RowParams.join([twins.row for twins in live])
        canvas = settle(advance(canvas, Prediction.gathered(said, range(len(live))), params, VOCAB), params)
        for i, (twins, known) in enumerate(zip(live, progress(canvas), strict=True)):
            twins.fast = canvas.row(i)
            twins.plain.advance(said[i].row(0), twins.params, VOCAB, twins.eos)
            twins.check(known)
            ends.add(known.stop)
        live = [twins for twins in live if twins.plain.stop is None]
    assert ends == {None, "converged", "max_steps"}


def test_joining_keeps_the_soft_embedding_and_fills_in_zeros() -> None:
    first, second = (start_canvas(seed, 0, PLACES, VOCAB) for seed in (1, 2))
    assert Canvas.join([first, second]).soft is None
    second = replace(second, soft=torch.ones(1, PLACES, 5))
    joined = Canvas.join([first, second, first]).soft
    assert joined is not None
    assert joined.sum((1, 2)).tolist() == [0, PLACES * 5, 0]


def test_random_numbers_of_many_rows_are_those_of_each() -> None:
    """Seeds, canvases and steps of the whole range; the draws and the start of the stream."""
    dice = random.Random(5)
    seeds = [0, 1, 2**63 - 1, *(dice.randrange(2**63) for _ in range(37))]
    parts = [(seed, dice.randrange(2**20), dice.randrange(10_000)) for seed in seeds]
    keys = torch.tensor([noise.canvas_key(seed, canvas) for seed, canvas, _ in parts])
    steps = torch.tensor([step for *_, step in parts])
    made = noise.streams(keys, steps, noise.TILE, noise.RENOISE, noise.ANCESTRAL)
    for row, part in enumerate(parts):
        for column, purpose in enumerate((noise.TILE, noise.RENOISE, noise.ANCESTRAL)):
            key = noise.stream(*part, purpose)
            assert int(made[column, row]) % 2**64 == key
            assert torch.equal(noise.tokens(made[column], 9, VOCAB)[row], noise.tokens(key, 9, VOCAB))
    for row, drawn in enumerate(draws_of(keys, steps, PLACES, 5000)):
        alone = draw(*parts[row], PLACES, 5000, "cpu")
        assert torch.equal(drawn.gumbel, alone.gumbel)
        assert torch.equal(drawn.uniform, alone.uniform)


def test_a_parameter_of_one_row_is_no_others() -> None:
    rows = RowParams.join([RowParams.of(Params(top_k=k, t_max=k / 7), (k,) * k) for k in (1, 2, 3)])
    assert rows.column("top_k").tolist() == [[1.0], [2.0], [3.0]]
    assert rows.column("t_max").tolist() == [[1 / 7], [2 / 7], [3 / 7]]
    assert rows.eos.tolist() == [[1, -1, -1], [2, 2, -1], [3, 3, 3]]
    with pytest.raises(KeyError):
        rows.column("seed")
