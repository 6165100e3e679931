"""Steps over many rows: no row knows of another, what is given or settled stays, and canvases end."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from canvaslm import diffusion
from canvaslm.diffusion import (
    PARAMETERS,
    Canvas,
    Params,
    Progress,
    RowParams,
    advance,
    progress,
    settle,
    start_canvas,
)
from canvaslm.families import ModelFacts
from canvaslm.ops.predict import Prediction

PLACES, VOCAB = 12, 50
MASK = 49
HOLES = ModelFacts(mask_token_id=MASK, keeps_accepted=True, self_conditioning=False)
FACTS = [ModelFacts(), HOLES]


def any_params(dice: random.Random) -> Params:
    """Parameters of the whole range, its ends as likely as what is between."""
    values: dict[str, object] = {}
    for name, about in PARAMETERS.items():
        if name in ("seed", "max_new_tokens", "top_k", "top_k_start", "top_k_end"):
            continue
        if about.choices:
            values[name] = dice.choice(about.choices)
        elif about.kind is bool:
            values[name] = dice.random() < 0.5
        elif about.low is not None and about.high is not None:
            usual = [about.default, about.low, about.high, about.default * dice.random()]
            values[name] = about.kind(dice.choice(usual)) or about.low
    return Params(**{**values, "max_denoising_steps": dice.choice([1, 2, 5, 9])})  # type: ignore[arg-type]


def any_prediction(dice: random.Random, last: Tensor) -> Prediction:
    """Of one row [1, C]: mostly what was said before, more or less certain. A mask is never said."""
    generator = torch.Generator().manual_seed(dice.randrange(2**31))
    stays = torch.rand(1, PLACES, generator=generator) < dice.choice([0.5, 0.95, 1.0])
    other, sampled = torch.randint(VOCAB - 1, (2, 1, PLACES), generator=generator)
    entropy = torch.rand(1, PLACES, generator=generator) ** 4 * dice.choice([0.01, 1.0])
    return Prediction(sampled, torch.where(stays & (last != MASK), last, other), entropy, -entropy, None)


def any_canvas(dice: random.Random, facts: ModelFacts) -> Canvas:
    given = {dice.randrange(PLACES): dice.randrange(VOCAB - 1) for _ in range(dice.randint(0, 3))}
    return start_canvas(
        dice.randrange(2**63), dice.randrange(9), PLACES, VOCAB, given=given, mask_token=facts.mask_token_id
    )


def columns(canvas: Canvas, row: int) -> list[Tensor | None]:
    one = canvas.row(row)
    return [getattr(one, field.name) for field in fields(Canvas)]


def same(one: list[Tensor | None], other: list[Tensor | None]) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from(FACTS))
def test_any_rows_in_any_order_are_what_each_is_alone(number: int, rows: int, facts: ModelFacts) -> None:
    """Three steps of random rows together, in another order and one by one: every field to the bit."""
    dice = random.Random(number)
    params = [any_params(dice) for _ in range(rows)]
    row_params = [RowParams.of(p, [dice.randrange(VOCAB) for _ in range(dice.randint(0, 2))]) for p in params]
    alone = [any_canvas(dice, facts) for _ in range(rows)]
    order = dice.sample(range(rows), rows)
    together, shuffled = Canvas.join(alone), Canvas.join([alone[i] for i in order])
    joined, moved = RowParams.join(row_params), RowParams.join([row_params[i] for i in order])
    for _ in range(3):
        said = [any_prediction(dice, canvas.argmax) for canvas in alone]
        batch = Prediction.gathered(said, range(rows))
        mixed = Prediction.gathered([said[i] for i in order], range(rows))
        together = settle(advance(together, batch, joined, VOCAB, facts), joined)
        shuffled = settle(advance(shuffled, mixed, moved, VOCAB, facts), moved)
        alone = [
            settle(advance(canvas, said[i], row_params[i], VOCAB, facts), row_params[i])
            for i, canvas in enumerate(alone)
        ]
        for i in range(rows):
            assert same(columns(together, i), columns(alone[i], 0))
            assert same(columns(shuffled, order.index(i)), columns(alone[i], 0))
        assert progress(together) == [progress(canvas)[0] for canvas in alone]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(FACTS))
def test_what_is_true_of_every_canvas_to_its_end(number: int, facts: ModelFacts) -> None:
    """Given places keep their tokens, what has settled stays and grows, tokens are tokens, and it ends."""
    dice = random.Random(number)
    params = replace(any_params(dice), first_places=0)
    row, state = RowParams.of(params, (3, 4)), any_canvas(dice, facts)
    given, tokens = state.frozen.clone(), state.tokens.clone()
    history: list[Canvas] = [state]
    while not int(state.stop):
        state = settle(advance(state, any_prediction(dice, state.argmax), row, VOCAB, facts), row)
        history.append(state)
        assert len(history) <= params.max_denoising_steps + 1
    for before, after in pairwise(history):
        assert torch.equal(after.tokens[given], tokens[given])
        assert torch.equal(after.argmax[given], tokens[given])
        assert int(after.step) == int(before.step) + 1
        assert int(after.tokens.min()) >= 0 and int(after.tokens.max()) < VOCAB
        assert int(before.settled) <= int(after.settled)
        start = slice(int(before.settled))
        assert torch.equal(after.argmax[:, start], before.argmax[:, start])
        assert torch.equal(after.frozen & before.frozen, before.frozen)  # nothing thaws
        assert after.accepted is not None and after.accepted[before.frozen].all()
        # Every step gets somewhere, but where coins decide.
        assert after.accepted.any() or params.sampler == "ancestral"
    (known,) = progress(state)
    assert known.step == len(history) - 1
    assert known.stop in ("converged", "max_steps")
    cap = min(params.max_denoising_steps, params.verify_steps or params.max_denoising_steps)
    assert known.stop == "converged" or known.step == cap


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_where_accepted_places_stay(number: int) -> None:
    """Mask noise: what is not accepted is the mask again, each step accepts a new place, and no token changes
    once it is accepted."""
    dice = random.Random(number)
    params = replace(any_params(dice), sampler="probability_threshold", settle_steps=0)
    params = replace(params, max_denoising_steps=50, eos_aware_stopping=False, first_places=0, verify_steps=0)
    row, state = RowParams.of(params), any_canvas(dice, HOLES)
    assert ((state.tokens == MASK) | state.frozen).all()
    for _ in range(PLACES):
        before, state = state, advance(state, any_prediction(dice, state.argmax), row, VOCAB, HOLES)
        assert (state.tokens[~state.frozen] == MASK).all()
        assert (state.tokens[state.frozen] != MASK).all()
        assert torch.equal(state.tokens[before.frozen], before.tokens[before.frozen])
        assert torch.equal(state.argmax[state.frozen], state.tokens[state.frozen])
        assert int(state.frozen.sum()) > int(before.frozen.sum())
        assert (int(state.stop) != 0) == bool(state.frozen.all())
        if state.frozen.all():
            return
    raise AssertionError("a canvas of so many places ends after as many steps")


def test_a_masked_canvas_may_end_behind_its_end() -> None:
    """With `eos_aware_stopping` masks behind an accepted end are no reason to go on."""
    for aware, stop in ((True, "converged"), (False, None)):
        params = Params(sampler="probability_threshold", eos_aware_stopping=aware, temperature=0)
        state = start_canvas(1, 0, 4, VOCAB, mask_token=MASK)
        argmax, entropy = torch.tensor([[9, 3, 7, 8]]), torch.tensor([[0.01, 0.02, 5.0, 5.0]])
        said = Prediction(argmax, argmax, entropy, -entropy, None)
        moved = advance(state, said, RowParams.of(params, (3,)), VOCAB, HOLES)
        assert moved.frozen.tolist() == [[True, True, False, False]]
        assert progress(moved)[0].stop == stop


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=PLACES, max_size=PLACES), st.integers(1, 4), st.integers(0, PLACES)
)
def test_the_start_that_settles(held: list[int], wanted: int, before: int) -> None:
    """As many places as were certain long enough without a gap, and never fewer than before."""
    state = replace(
        start_canvas(1, 0, PLACES, VOCAB), held=torch.tensor([held]), settled=torch.tensor([before])
    )
    state = replace(state, argmax=torch.arange(PLACES)[None])
    found = settle(state, RowParams.of(Params(settle_steps=wanted)))
    run = next((i for i, n in enumerate(held) if n < wanted), PLACES)
    count = max(run, before)
    assert int(found.settled) == count
    assert found.tokens[0, :count].tolist() == list(range(count))
    assert torch.equal(found.tokens[:, count:], state.tokens[:, count:])
    assert found.frozen[0].tolist() == [i < count for i in range(PLACES)]


def test_rows_that_do_not_settle_or_have_ended_are_left_alone() -> None:
    certain = torch.full((1, PLACES), 9)
    rows = [replace(start_canvas(i, 0, PLACES, VOCAB), held=certain) for i in range(3)]
    rows[2] = replace(rows[2], stop=torch.tensor([1]))
    params = RowParams.join([RowParams.of(Params(settle_steps=n)) for n in (0, 1, 1)])
    state = Canvas.join(rows)
    found = settle(state, params)
    assert found.settled.tolist() == [0, PLACES, 0]
    assert found.frozen.all(-1).tolist() == [False, True, False]
    assert torch.equal(found.tokens[[0, 2]], state.tokens[[0, 2]])
    assert settle(rows[0], RowParams.of(Params())) is rows[0]  # without any such row nothing is computed


@pytest.mark.parametrize("length", [1, 7, 300])
def test_a_canvas_begins(length: int) -> None:
    given = {0: 5, length - 1: 6}
    state = start_canvas(2**63 - 1, 4, length, VOCAB, given=given)
    assert len(state) == 1 and state.tokens.shape == (1, length)
    assert {place: int(state.tokens[0, place]) for place in given} == given
    assert sorted(given) == state.frozen[0].nonzero().flatten().tolist()
    assert torch.equal(state.argmax, state.tokens)
    free = start_canvas(2**63 - 1, 4, length, VOCAB)
    assert torch.equal(free.tokens[~state.frozen], state.tokens[~state.frozen])  # others are not moved by it
    masked = start_canvas(0, 0, length, VOCAB, given={0: 5}, mask_token=MASK)
    assert masked.tokens[0].tolist() == [5] + [MASK] * (length - 1)


def test_noise_is_uniform_over_the_whole_vocabulary() -> None:
    """50 tokens, 100,000 places: each is there about 2,000 times (a standard deviation is 44)."""
    counts = torch.bincount(start_canvas(1, 0, 100_000, VOCAB).tokens[0], minlength=VOCAB)
    assert len(counts) == VOCAB
    assert int(counts.min()) > 1700 and int(counts.max()) < 2300


def test_rows_are_told_apart_and_kept() -> None:
    rows = [start_canvas(i, i, PLACES, VOCAB, given={i: i}) for i in range(3)]
    joined = Canvas.join(rows)
    assert len(joined) == 3
    for i, row in enumerate(rows):
        assert same(columns(joined, i), columns(row, 0))
    assert Canvas.join(rows[:1]) is rows[0]


def test_progress_of_rows_at_different_ends() -> None:
    rows = [
        replace(start_canvas(i, 0, 2, VOCAB), step=torch.tensor([step]), stop=torch.tensor([stop]),
                settled=torch.tensor([i]))
        for i, (step, stop) in enumerate([(3, 0), (10_000, 2), (7, 1)])
    ]  # fmt: skip
    state = replace(Canvas.join(rows), entropy=torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.25, 0.5]]))
    assert progress(state) == [
        Progress(3, None, 1.5, 0),
        Progress(10_000, "max_steps", 0.0, 1),
        Progress(7, "converged", 0.375, 2),
    ]


def test_the_package_gives_its_names_when_they_are_asked_for() -> None:
    for name in diffusion.__all__:
        assert getattr(diffusion, name) is not None
    with pytest.raises(AttributeError, match=r"'canvaslm\.diffusion' has no attribute 'advanced'"):
        _ = diffusion.advanced
