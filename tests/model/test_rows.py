"""A pass in which some tokens are encoded and others denoised equals a pass for each."""

from __future__ import annotations

import pytest
import torch

from canvaslm.model import PlainContext, RowsContext
from canvaslm.model.diffusion_gemma import DiffusionGemma
from tests.tiny import tiny_model

S, F = "sliding_attention", "full_attention"
PLACES = 16


@pytest.fixture(params=[(F,), (S, F), (S, S, F, S, F)], ids=len)
def model(request: pytest.FixtureRequest) -> DiffusionGemma:
    model = tiny_model(
        canvas_length=PLACES, sliding_window=21, num_layers=len(request.param), layer_types=request.param
    )
    for layer in model.layers:
        layer.encoder_layer_scalar.fill_(0.7)
    return model


def tokens(count: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(0, 64, (rows, count))


def places(start: int, count: int, rows: int = 1) -> torch.Tensor:
    return torch.arange(start, start + count).expand(rows, -1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("soft", [False, True])
@torch.inference_mode()
def test_encoding_and_denoising_in_one_pass(model: DiffusionGemma, rows: int, soft: bool) -> None:
    before, chunk, canvas = tokens(17, rows), tokens(30, rows), tokens(PLACES, rows)
    mixed_in = torch.randn(rows, PLACES, 64) if soft else None
    apart, together = PlainContext(model.config), PlainContext(model.config)
    for context in (apart, together):
        model.encode(before, places(0, 17, rows), context)
    model.encode(chunk, places(17, 30, rows), apart)
    expected = model.denoise(canvas, places(47, PLACES, rows), apart, mixed_in)
    both = torch.cat((chunk, canvas), 1)
    found = model(both, places(17, 30 + PLACES, rows), together, 30, mixed_in)
    assert torch.equal(found, expected)
    for layer in apart.keys:
        assert torch.equal(apart.keys[layer], together.keys[layer])
        assert torch.equal(apart.values[layer], together.values[layer])


@torch.inference_mode()
def test_rows_of_unequal_length_end_to_end(model: DiffusionGemma) -> None:
    """Three rows: one encodes and denoises, one only encodes, one only denoises."""
    prompts, canvases = [tokens(40), tokens(25), tokens(19)], [tokens(PLACES), tokens(PLACES)]
    apart = [PlainContext(model.config) for _ in prompts]
    for context, prompt in zip(apart, prompts, strict=True):
        model.encode(prompt, places(0, prompt.shape[1]), context)
    expected = [
        model.denoise(canvases[0], places(40, PLACES), apart[0]),
        model.denoise(canvases[1], places(19, PLACES), apart[2]),
    ]
    contexts = [PlainContext(model.config) for _ in prompts]
    model.encode(prompts[2], places(0, 19), contexts[2])
    together = RowsContext(
        [(contexts[0], 40), (contexts[1], 25)], [(contexts[0], PLACES), (contexts[2], PLACES)]
    )
    found = model(
        torch.cat((*prompts[:2], *canvases), 1),
        torch.cat((places(0, 40), places(0, 25), places(40, PLACES), places(19, PLACES)), 1),
        together,
        65,
    )
    assert torch.equal(found, torch.cat(expected, 1))
    for mine, other in zip(contexts, apart, strict=True):
        assert all(torch.equal(mine.keys[layer], other.keys[layer]) for layer in other.keys)


@torch.inference_mode()
def test_all_encoded_gives_no_states(model: DiffusionGemma) -> None:
    context = PlainContext(model.config)
    assert model(tokens(20, 2), places(0, 20, 2), context, 20).shape == (2, 0, 64)
    assert set(context.keys) == set(range(len(model.layers)))


def test_gradients_flow_through_a_mixed_pass(model: DiffusionGemma) -> None:
    both = tokens(30 + PLACES)
    model(both, places(0, 30 + PLACES), PlainContext(model.config), 30).sum().backward()
    weight = model.layers[0].self_attn.k_proj.weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
