"""Layers on native kernels: when they take the plain ones' place, and what they answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from canvaslm.model import PlainContext, RowsContext
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.model.diffusion_gemma.fused import FusedNorm, FusedSelfConditioning, FusedTextLayer, fuse
from canvaslm.model.diffusion_gemma.text import SelfConditioning, TextLayer
from canvaslm.model.protocol import RouterLog
from canvaslm.ops import cpu
from canvaslm.ops.linear import Linear
from canvaslm.ops.norm import RMSNorm
from canvaslm.weights.gguf.load import load_quantised
from canvaslm.weights.loading.load import load_model
from tests.tiny import tiny_model, write_tiny_gguf

S, F = "sliding_attention", "full_attention"
WIDTH, CANVAS = 256, 8

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no native kernels here")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers with scalars of their own, in the finest quantised type; all experts run, so that no
    rounding chooses another one."""
    model = tiny_model(
        seed=6, vocab_size=1024, hidden_size=WIDTH, intermediate_size=160, moe_intermediate_size=96,
        top_k_experts=4, num_layers=3, layer_types=(S, F, F),
    )  # fmt: skip
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            layer.layer_scalar.fill_(0.8 + 0.1 * i)
            layer.encoder_layer_scalar.fill_(1.1 - 0.1 * i)
    return write_tiny_gguf(model, tmp_path_factory.mktemp("fused") / "m.gguf", "Q8_0")


@pytest.fixture(scope="module")
def fused(path: Path) -> DiffusionGemma:
    model = load_quantised(path).model
    assert isinstance(model, DiffusionGemma)
    return model


@pytest.fixture(scope="module")
def unfused(path: Path) -> DiffusionGemma:
    """The same tensors in fp32, in plain torch."""
    model = load_model(path, dtype=torch.float32).model
    assert isinstance(model, DiffusionGemma)
    return model


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(0, 1024, (1, count), generator=torch.Generator().manual_seed(seed))


def places(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count)[None]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def states(model: DiffusionGemma, length: int, soft: Tensor | None = None) -> Tensor:
    """Encodes a prompt, encodes some more in the same pass as it denoises: [1, CANVAS, H]."""
    context = PlainContext(model.config)
    model.encode(tokens(length, 1), places(0, length), context)
    both = torch.cat((tokens(5, 2), tokens(CANVAS, 3)), 1)
    return model(both, places(length, 5 + CANVAS), context, 5, soft)


@pytest.mark.parametrize("length", [1, 7, 30])
@torch.inference_mode()
def test_the_whole_model_is_close_to_its_tensors_in_plain_torch(
    fused: DiffusionGemma, unfused: DiffusionGemma, length: int
) -> None:
    """Activations are rounded to 8 bits for each product: about 1 % of one, some percent of three layers."""
    soft = torch.randn(1, CANVAS, WIDTH, generator=torch.Generator().manual_seed(length))
    for given in (None, soft):
        difference = apart(states(fused, length, given), states(unfused, length, given))
        assert 0 < difference < 0.1
    assert apart(states(fused, length), states(fused, length, soft)) > 0.1  # the bound above says something


@torch.inference_mode()
def test_phases_in_one_pass_are_a_pass_each(fused: DiffusionGemma) -> None:
    apart_, length = PlainContext(fused.config), 12
    fused.encode(tokens(length, 1), places(0, length), apart_)
    fused.encode(tokens(5, 2), places(length, 5), apart_)
    expected = fused.denoise(tokens(CANVAS, 3), places(length + 5, CANVAS), apart_)
    assert torch.allclose(states(fused, length), expected, atol=1e-5)


@torch.inference_mode()
def test_rows_end_to_end_are_each_alone(fused: DiffusionGemma) -> None:
    """Kernels round each token by itself: no neighbour changes a row."""
    lengths = (3, 19)
    contexts = [PlainContext(fused.config) for _ in lengths]
    rows = RowsContext(
        [(context, n) for context, n in zip(contexts, lengths, strict=True)],
        [(context, CANVAS) for context in contexts],
    )
    prompts, canvases = [tokens(n, n) for n in lengths], [tokens(CANVAS, 40 + n) for n in lengths]
    positions = torch.cat([*(places(0, n) for n in lengths), *(places(n, CANVAS) for n in lengths)], 1)
    found = fused(torch.cat((*prompts, *canvases), 1), positions, rows, sum(lengths))
    for i, length in enumerate(lengths):
        context = PlainContext(fused.config)
        fused.encode(prompts[i], places(0, length), context)
        alone = fused.denoise(canvases[i], places(length, CANVAS), context)
        assert torch.allclose(found[:, CANVAS * i : CANVAS * (i + 1)], alone, atol=1e-5)


@pytest.mark.parametrize("encoded", [0, 3, CANVAS])
@torch.inference_mode()
def test_each_token_takes_the_scalar_of_what_it_is_in(fused: DiffusionGemma, encoded: int) -> None:
    layer = fused.layers[1]
    assert isinstance(layer, FusedTextLayer)
    x, positions = torch.randn(1, CANVAS, WIDTH), places(0, CANVAS)
    twin, rope = FusedTextLayer(layer.plain), fused._ropes(positions)[1]

    def run(encoder: float, decoder: float) -> Tensor:
        twin.encoder_scalar, twin.scalar = encoder, decoder
        return twin(x, positions, rope, PlainContext(fused.config), encoded=encoded)

    factors = torch.tensor([0.25] * encoded + [3.0] * (CANVAS - encoded))[:, None]
    assert torch.allclose(run(0.25, 3.0), run(1.0, 1.0) * factors, atol=1e-5)


def test_what_is_replaced(fused: DiffusionGemma) -> None:
    assert all(isinstance(layer, FusedTextLayer) for layer in fused.layers)
    assert isinstance(fused.norm, FusedNorm) and isinstance(fused.self_conditioning, FusedSelfConditioning)
    assert fused.store == "blocks"
    assert (fused.dtype, fused.device.type) == (torch.float32, "cpu")
    assert [layer.scalar for layer in fused.layers] == pytest.approx([0.8, 0.9, 1.0])
    assert [layer.encoder_scalar for layer in fused.layers] == pytest.approx([1.1, 1.0, 0.9])


def test_a_model_without_packed_weights_stays_as_it_is() -> None:
    model = tiny_model()
    fuse(model)
    assert all(isinstance(layer, TextLayer) for layer in model.layers)
    assert isinstance(model.norm, RMSNorm) and isinstance(model.self_conditioning, SelfConditioning)
    assert model.store == "tensors"


@torch.inference_mode()
def test_a_layer_with_one_unpacked_matrix_stays_plain(path: Path, unfused: DiffusionGemma) -> None:
    """The others are replaced, each with the rotary tables that it wants, and the answer is still right."""
    model, loose = load_quantised(path).model, Linear(4 * 32, WIDTH)
    loose.load_state_dict(unfused.layers[1].self_attn.o_proj.state_dict())
    for i, layer in enumerate(model.layers):
        assert isinstance(layer.plain, TextLayer)
        model.layers[i] = layer.plain
    model.layers[1].self_attn.o_proj = loose
    model.norm, model.self_conditioning = unfused.norm, unfused.self_conditioning
    model.fuse()
    kinds = [type(layer) for layer in model.layers]
    assert kinds == [FusedTextLayer, TextLayer, FusedTextLayer]
    assert isinstance(model.norm, FusedNorm) and isinstance(model, DiffusionGemma)
    assert isinstance(model.self_conditioning, SelfConditioning)  # its own weights are not packed
    assert [table[0].shape[-1] for table in model._ropes(places(0, 3))] == [8, 32, 16]  # half, whole, half
    assert 0 < apart(states(model, 9), states(unfused, 9)) < 0.1


def test_routing_is_not_logged(fused: DiffusionGemma) -> None:
    with pytest.raises(ValueError, match="do not log their routing; load the model with a dtype instead"):
        fused.denoise(
            tokens(CANVAS, 1), places(0, CANVAS), PlainContext(fused.config), router_log=RouterLog()
        )


@torch.inference_mode()
def test_several_rows_are_encoded_or_denoised_and_not_both(fused: DiffusionGemma) -> None:
    two, positions = tokens(CANVAS, 1).expand(2, -1), places(0, CANVAS).expand(2, -1)
    with pytest.raises(ValueError, match="mix both kinds of tokens in one row, not in 2"):
        fused(two, positions, PlainContext(fused.config), 3)
    context = PlainContext(fused.config)
    fused.encode(two, positions, context)
    found = fused.denoise(two, positions + CANVAS, context)
    assert found.shape == (2, CANVAS, WIDTH) and torch.equal(found[0], found[1])
