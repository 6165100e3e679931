"""The loss on a two-layer model with C = 8, window 8 and 64 tokens: every claim of its docstring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from canvaslm.model import Model, PlainContext
from canvaslm.train.data import Batch, TrainingExample, make_batch, make_row
from canvaslm.train.objective import Draws, Objective, corrupt, draw, generator
from canvaslm.train.settings import ObjectiveSettings
from tests.present import present
from tests.tiny import tiny_model

C, EOS, V = 8, 1, 64
PROMPT = (2, 30, 31, 32, 33)


def batch_of(*rows: tuple[int, int], prompt: Sequence[int] = PROMPT, encode_fill: bool = True) -> Batch:
    """Rows (response length, block)."""
    made = []
    for length, block in rows:
        response = tuple(5 + (7 * i + length) % 50 for i in range(length))
        made.append(make_row(TrainingExample(tuple(prompt), response), block, C, EOS))
    return make_batch(made, C, encode_fill=encode_fill)


def objective(model: Model | None = None, **changes: Any) -> Objective:
    model = model if model is not None else tiny_model(3)
    settings = ObjectiveSettings(**{"self_conditioning": 0.0, "freeze_router": False, **changes})
    return Objective(model, settings)


def draws_of(batch: Batch, seed: int = 0, coin: list[bool] | None = None) -> Draws:
    made = draw(batch.clean, V, ObjectiveSettings(), generator(seed, 0, 0))
    return made if coin is None else Draws(made.t, made.canvas, torch.tensor(coin))


def gradients(model: Model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_corrupting_at_t_1_replaces_uniformly() -> None:
    clean = torch.full((400, 100), 9)
    noisy = corrupt(clean, torch.ones(400), V, generator(0, 0, 0))
    kept = (noisy == 9).float().mean().item()
    assert kept == pytest.approx(1 / V, abs=4 * (1 / V / 40000) ** 0.5)
    counts = noisy.flatten().bincount(minlength=V).double()
    expected = 40000 / V
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 103.4  # 63 degrees of freedom, 0.1 % point


def test_corrupting_changes_a_share_t_of_places() -> None:
    clean = torch.full((3, 20000), 9)
    t = torch.tensor([0.0, 0.3, 0.9])
    changed = (corrupt(clean, t, V, generator(1, 0, 0)) != 9).float().mean(1)
    assert changed[0] == 0
    torch.testing.assert_close(changed, t * (1 - 1 / V), atol=0.015, rtol=0)


def test_draws_repeat_and_depend_on_seed_step_and_micro_batch() -> None:
    clean = batch_of((8, 0), (8, 0)).clean
    first, again = (draw(clean, V, ObjectiveSettings(), generator(1, 2, 3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(draw(clean, V, ObjectiveSettings(), generator(*key)).t, first.t)


def test_times_lie_in_range_and_coins_fall_as_told() -> None:
    clean = torch.zeros(4000, C, dtype=torch.int64)
    made = draw(clean, V, ObjectiveSettings(t_min=0.2, self_conditioning=0.25), generator(0, 0, 0))
    assert 0.2 <= made.t.min() < 0.21
    assert 0.99 < made.t.max() < 1
    assert made.coin.float().mean().item() == pytest.approx(0.25, abs=0.03)


def canvas_loss(model: Model, batch: Batch, canvas: torch.Tensor) -> float:
    made = Draws(torch.ones(len(canvas)), canvas, torch.zeros(len(canvas), dtype=torch.bool))
    return float(objective(model).terms(batch, made).canvas)


@torch.no_grad()
def test_a_block_sees_what_is_before_it_and_nothing_else_that_is_clean() -> None:
    model = tiny_model(3, sliding_window=64)
    batch = batch_of((3 * C, 1))
    noisy = draws_of(batch).canvas
    loss = canvas_loss(model, batch, noisy)
    start = len(PROMPT) + C
    for place in range(batch.tokens.shape[1]):
        moved = batch.tokens.clone()
        moved[0, place] = (moved[0, place] + 1) % V
        other = canvas_loss(model, Batch(**{**vars(batch), "tokens": moved}), noisy)
        assert (other == loss) == (place >= start), place


@torch.no_grad()
@pytest.mark.parametrize("block", [0, 1, 2, 3])
@pytest.mark.parametrize("window", [4, 8, 64])
def test_a_block_in_training_equals_inference_on_its_context(block: int, window: int) -> None:
    """Also beyond the window, and with another row of another length beside it."""
    model = tiny_model(4, sliding_window=window)
    batch = batch_of((4 * C, block), (3, 0))
    canvas = draws_of(batch).canvas
    training = PlainContext(model.config)
    model.encode(batch.tokens, batch.positions, training)
    trained = model.logits(model.denoise(canvas, batch.canvas_positions, training))[0]

    length = len(PROMPT) + block * C
    inference = PlainContext(model.config)
    model.encode(batch.tokens[:1, :length], torch.arange(length)[None], inference)
    served = model.logits(model.denoise(canvas[:1], length + torch.arange(C)[None], inference))[0]
    torch.testing.assert_close(trained, served, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_without_self_conditioning_equals_none_bit_for_bit() -> None:
    model = tiny_model(5)
    batch = batch_of((8, 0), (12, 1))
    context = PlainContext(model.config)
    model.encode(batch.tokens, batch.positions, context)
    some = objective(model, self_conditioning=0.5)
    soft = some._soft(batch, draws_of(batch, coin=[False, True]), some._encode(batch)[2])
    assert soft is not None
    assert not soft[0].any()
    assert soft[1].any()
    canvas = draws_of(batch).canvas
    without = model.denoise(canvas, batch.canvas_positions, context)
    zeros = model.denoise(canvas, batch.canvas_positions, context, soft)
    assert torch.equal(zeros[0], without[0])
    assert not torch.equal(zeros[1], without[1])


def test_no_gradient_flows_through_the_first_pass() -> None:
    """The gradient equals that of a fixed soft embedding of the same value."""
    batch = batch_of((8, 0), (12, 1))
    made = draws_of(batch, coin=[True, True])
    live = objective(tiny_model(5), self_conditioning=1.0)
    live.terms(batch, made).canvas.backward()
    fixed = objective(tiny_model(5), self_conditioning=1.0)
    with torch.no_grad():
        soft = fixed._soft(batch, made, fixed._encode(batch)[2]).clone()
    fixed._denoise(batch, made.canvas, soft, fixed._encode(batch)[2])[0].sum().backward()
    left, right = gradients(live.model), gradients(fixed.model)
    assert "self_conditioning.gate_proj.weight" in left
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], msg=name)


@torch.no_grad()
def test_the_loss_equals_a_hand_computation() -> None:
    model = tiny_model(6)
    batch = batch_of((11, 1), (5, 0))
    made = draws_of(batch, coin=[True, False])
    terms = objective(model, self_conditioning=0.5).terms(batch, made)
    canvas, encoder = 0.0, 0.0
    for row in range(2):
        length = int((batch.positions[row] >= 0).sum())
        tokens, start = batch.tokens[row : row + 1, :length], int(batch.canvas_positions[row, 0])
        context = PlainContext(model.config)
        states = model.encode(tokens, torch.arange(length)[None], context, hidden=True)
        logits = model.logits(present(states))[0, len(PROMPT) - 1 : -1]
        encoder += float(F.cross_entropy(logits, tokens[0, len(PROMPT) :], reduction="sum"))
        places = start + torch.arange(C)[None]
        noisy, soft = made.canvas[row : row + 1], None
        if made.coin[row]:
            first = model.logits(model.denoise(noisy, places, context)).softmax(-1)
            soft = first @ model.embed_tokens.weight * model.config.hidden_size**0.5
        logits = model.logits(model.denoise(noisy, places, context, soft))[0]
        canvas -= float(logits.log_softmax(-1).gather(1, batch.clean[row][:, None]).sum())
    assert float(terms.canvas) == pytest.approx(canvas, rel=1e-5)
    assert float(terms.encoder) == pytest.approx(encoder, rel=1e-5)
    whole = objective(model, encoder_weight=0.5).loss(terms, batch.canvas_count, batch.encoder_count)
    assert float(whole) == pytest.approx(canvas / 16 + 0.5 * encoder / (16 + 8), rel=1e-5)


GIVEN = (False, True, True, False, True, False, False, True, True, False, True)


def test_given_places_stay_clean_and_the_others_have_the_noise_they_would_have() -> None:
    clean = torch.arange(4 * 50).view(4, 50) % V
    given = torch.rand(4, 50, generator=generator(5, 0, 0)) < 0.5
    plain, made = (draw(clean, V, ObjectiveSettings(), generator(1, 0, 0), g) for g in (None, given))
    assert torch.equal(made.canvas[given], clean[given])
    assert torch.equal(made.canvas[~given], plain.canvas[~given])
    assert (plain.canvas[given] != clean[given]).any()
    assert torch.equal(made.t, plain.t)
    assert torch.equal(made.coin, plain.coin)


@torch.no_grad()
def test_a_filled_hole_has_the_loss_of_a_hand_computation() -> None:
    """Only open places count, on the canvas and in the encoder; a row without given places is as it was."""
    model, response = tiny_model(6), tuple(5 + (7 * i) % 50 for i in range(len(GIVEN)))
    holed = make_row(TrainingExample(PROMPT, response, given=GIVEN), 1, C, EOS)
    plain = make_row(TrainingExample(PROMPT, response), 1, C, EOS)
    batch = make_batch([holed, plain], C)
    made = objective(model).draw(batch, 0, 0, 0)
    terms = objective(model).terms(batch, made)
    canvas, encoder, count = 0.0, 0.0, 0
    for row, given in ((0, (*GIVEN, *[True] * 5)), (1, (False,) * 16)):
        context = PlainContext(model.config)
        tokens = batch.tokens[row : row + 1]
        states = model.encode(tokens, torch.arange(len(tokens[0]))[None], context, hidden=True)
        logits = model.logits(present(states))[0].log_softmax(-1)
        places = len(PROMPT) + C + torch.arange(C)[None]
        denoised = model.logits(model.denoise(made.canvas[row : row + 1], places, context))[0].log_softmax(-1)
        for place, known in enumerate(given):
            token, at = int(tokens[0, len(PROMPT) + place]), place - C
            encoder -= 0 if known else float(logits[len(PROMPT) + place - 1, token])
            canvas -= 0 if known or at < 0 else float(denoised[at, token])
            count += not known and at >= 0
            assert not known or at < 0 or int(made.canvas[row, at]) == token
    assert float(terms.canvas) == pytest.approx(canvas, rel=1e-5)
    assert float(terms.encoder) == pytest.approx(encoder, rel=1e-5)
    assert batch.canvas_count == count


@torch.no_grad()
def test_padding_rows_columns_and_neighbours_do_not_change_the_sums() -> None:
    model = tiny_model(6)
    alone, padded = batch_of((5, 0)), None
    rows = [make_row(TrainingExample(PROMPT, tuple(5 + (7 * i + 5) % 50 for i in range(5))), 0, C, EOS)]
    padded = make_batch(rows, C, multiple=32, size=3)
    made = draws_of(alone)
    more = Draws(made.t.repeat(3), made.canvas.repeat(3, 1), torch.tensor([False] * 3))
    one, three = objective(model).terms(alone, made), objective(model).terms(padded, more)
    assert float(three.canvas) == pytest.approx(float(one.canvas), rel=1e-5)
    assert float(three.encoder) == pytest.approx(float(one.encoder), rel=1e-5)
    assert int(three.wrong) == int(one.wrong)


@torch.no_grad()
def test_leaving_the_fill_out_of_the_encoder_moves_only_its_own_loss() -> None:
    model = tiny_model(6)
    whole, short = batch_of((11, 1)), batch_of((11, 1), encode_fill=False)
    made = draws_of(whole)
    left, right = objective(model).terms(whole, made), objective(model).terms(short, made)
    assert float(left.canvas) == pytest.approx(float(right.canvas), rel=1e-6)
    assert float(left.encoder) > float(right.encoder)


def test_a_frozen_router_has_no_gradient() -> None:
    for frozen in (True, False):
        made = objective(tiny_model(7), freeze_router=frozen)
        batch = batch_of((8, 0))
        made.terms(batch, draws_of(batch)).canvas.backward()
        assert any(".router." in name for name in gradients(made.model)) == (not frozen)


def test_the_encoder_learns_from_the_decoders_loss_alone() -> None:
    """Tokens of the prompt reach the loss only through keys and values: their embeddings get gradient."""
    made = objective(tiny_model(7, tie_word_embeddings=False))
    batch = batch_of((8, 0), prompt=(2, 60, 61))
    made.terms(batch, draws_of(batch)).canvas.backward()
    embedding: Any = made.model.embed_tokens
    gradient = embedding.weight.grad
    assert gradient is not None
    assert set(draws_of(batch).canvas.flatten().tolist()).isdisjoint({60, 61})
    assert gradient[60].any()
    assert gradient[61].any()


def test_the_auxiliary_loss_is_1_for_even_routing_and_E_over_K_for_one_sided() -> None:
    model = tiny_model(8)
    batch = batch_of((8, 0))
    made = objective(model, aux_weight=0.01)
    with torch.no_grad():
        for layer in model.layers:
            layer.router.proj.weight.zero_()
    assert float(made.terms(batch, draws_of(batch)).aux.detach()) == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        for layer in model.layers:
            layer.router.scale.fill_(0)
            layer.router.register_forward_hook(_one_sided)
    assert float(made.terms(batch, draws_of(batch)).aux.detach()) == pytest.approx(4 / 2, abs=1e-3)


def _one_sided(
    module: nn.Module, inputs: Any, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    probabilities, weights, index = output
    sure = torch.zeros_like(probabilities)
    sure[:, :2] = 0.5
    return sure, weights, torch.tensor([0, 1]).expand_as(index)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    rows = [(8, 0), (3, 0), (12, 1), (20, 2)]
    whole = batch_of(*rows)
    noisy = draws_of(whole, coin=[True, False, True, False])
    together = objective(tiny_model(9), self_conditioning=0.5)
    terms = together.terms(whole, noisy)
    together.loss(terms, whole.canvas_count, whole.encoder_count).backward()
    apart = objective(tiny_model(9), self_conditioning=0.5)
    for part in (slice(0, 2), slice(2, 4)):
        batch = batch_of(*rows[part])
        made = Draws(noisy.t[part], noisy.canvas[part], noisy.coin[part])
        apart.loss(apart.terms(batch, made), whole.canvas_count, whole.encoder_count).backward()
    left, right = gradients(together.model), gradients(apart.model)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-6, rtol=1e-3, msg=name)
