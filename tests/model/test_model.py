"""The model as a whole: what it answers about itself, and that no row, phase or cut changes a result."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from canvaslm.model import Model, PlainContext, RowsContext
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.model.protocol import RouterLog
from canvaslm.ops.quantised import QuantVocabulary
from tests.second_family import HoleConfig, HoleModel, hole_model
from tests.tiny import tiny_config, tiny_model

S, F = "sliding_attention", "full_attention"
CANVAS = 8


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    """Three layers, whose two scalars differ."""
    model = tiny_model(seed=3, num_layers=3, layer_types=(S, F, F))
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            layer.layer_scalar.fill_(0.8 + 0.1 * i)
            layer.encoder_layer_scalar.fill_(1.1 - 0.1 * i)
    return model


def tokens(count: int, seed: int = 0, rows: int = 1) -> Tensor:
    return torch.randint(0, 64, (rows, count), generator=torch.Generator().manual_seed(seed))


def places(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count)[None]


def answer(model: DiffusionGemma, prompt: Tensor, canvas: Tensor, soft: Tensor | None = None) -> Tensor:
    context, length = PlainContext(model.config), prompt.shape[1]
    if length:
        model.encode(prompt, places(0, length), context)
    return model.denoise(canvas, places(length, canvas.shape[1]), context, soft)


# Always the same examples: once in many thousand tokens another last bit would choose another expert.
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=4), st.integers(0, 1000))
@torch.inference_mode()
def test_rows_of_any_lengths_are_what_each_is_alone(
    model: DiffusionGemma, lengths: list[int], seed: int
) -> None:
    """One pass in which all rows are encoded and denoised, end to end."""
    prompts = [tokens(n, seed + i) for i, n in enumerate(lengths)]
    canvases = [tokens(CANVAS, seed + 50 + i) for i in range(len(lengths))]
    contexts = [PlainContext(model.config) for _ in lengths]
    rows = RowsContext(list(zip(contexts, lengths, strict=True)), [(context, CANVAS) for context in contexts])
    positions = [places(0, n) for n in lengths] + [places(n, CANVAS) for n in lengths]
    found = model(torch.cat((*prompts, *canvases), 1), torch.cat(positions, 1), rows, sum(lengths))
    assert found.shape == (1, CANVAS * len(lengths), 64)
    for i, (prompt, canvas) in enumerate(zip(prompts, canvases, strict=True)):
        alone = answer(model, prompt, canvas)
        assert torch.allclose(found[:, CANVAS * i : CANVAS * (i + 1)], alone, atol=2e-5)


@torch.inference_mode()
def test_the_order_of_rows_is_the_order_of_answers(model: DiffusionGemma) -> None:
    prompts, canvases = tokens(13, rows=4), tokens(CANVAS, 1, rows=4)
    order = torch.tensor([2, 0, 3, 1])

    def batch(rows: Tensor) -> Tensor:
        context = PlainContext(model.config)
        model.encode(prompts[rows], places(0, 13).expand(4, -1), context)
        return model.denoise(canvases[rows], places(13, CANVAS).expand(4, -1), context)

    assert torch.allclose(batch(order), batch(torch.arange(4))[order], atol=2e-5)


@pytest.mark.parametrize("cuts", [[1] * 19, [18, 1], [5, 14], [8, 8, 3]])
@torch.inference_mode()
def test_a_prompt_in_chunks_is_the_prompt_at_once(model: DiffusionGemma, cuts: list[int]) -> None:
    prompt, canvas = tokens(19), tokens(CANVAS, 1)
    context, at = PlainContext(model.config), 0
    for count in cuts:
        model.encode(prompt[:, at : at + count], places(at, count), context)
        at += count
    found = model.denoise(canvas, places(19, CANVAS), context)
    assert torch.allclose(found, answer(model, prompt, canvas), atol=2e-5)


@torch.inference_mode()
def test_denoising_leaves_the_context_alone(model: DiffusionGemma) -> None:
    context = PlainContext(model.config)
    model.encode(tokens(11), places(0, 11), context)
    held = {layer: (context.keys[layer].clone(), context.values[layer].clone()) for layer in context.keys}
    assert set(held) == {0, 1, 2}
    soft = torch.randn(1, CANVAS, 64)
    first = model.denoise(tokens(CANVAS, 1), places(11, CANVAS), context, soft)
    assert torch.equal(model.denoise(tokens(CANVAS, 1), places(11, CANVAS), context, soft), first)
    for layer, (keys, values) in held.items():
        assert torch.equal(context.keys[layer], keys) and torch.equal(context.values[layer], values)


@torch.inference_mode()
def test_what_a_canvas_hangs_on(model: DiffusionGemma) -> None:
    """Its own places, its whole context (a full layer reaches all of it), and the soft embedding."""
    prompt, canvas = tokens(30), tokens(CANVAS, 1)
    base = answer(model, prompt, canvas)
    for at in (0, 15, 29):
        other = prompt.clone()
        other[0, at] = (other[0, at] + 1) % 64
        assert not torch.allclose(answer(model, other, canvas), base, atol=1e-4)
    for at in (0, CANVAS - 1):
        other = canvas.clone()
        other[0, at] = (other[0, at] + 1) % 64
        changed = (answer(model, prompt, other) - base).abs().amax(-1)[0]
        assert (changed > 1e-5).all()  # every place sees every other
    assert not torch.allclose(answer(model, prompt, canvas, torch.randn(1, CANVAS, 64)), base, atol=1e-4)
    assert torch.equal(answer(model, prompt, canvas, torch.zeros(1, CANVAS, 64)), base)


@torch.inference_mode()
def test_encoding_looks_back_alone(model: DiffusionGemma) -> None:
    """A token's keys and values hang on what is before it, and on nothing behind it."""
    first, second = PlainContext(model.config), PlainContext(model.config)
    prompt = tokens(20)
    other = torch.cat((prompt[:, :12], tokens(8, 9)), 1)
    for context, its in ((first, prompt), (second, other)):
        model.encode(its, places(0, 20), context)
    for layer in first.keys:
        assert torch.allclose(first.keys[layer][:, :, :12], second.keys[layer][:, :, :12], atol=1e-5)
        assert not torch.allclose(first.keys[layer][:, :, 12:], second.keys[layer][:, :, 12:], atol=1e-3)


@torch.inference_mode()
def test_sliding_layers_alone_forget_what_is_beyond_the_window() -> None:
    """One sliding layer and a full one that only ends the stack: with its attention's output cut off, a token
    beyond the window of 8 changes nothing."""
    model = tiny_model(seed=4)
    model.layers[1].self_attn.o_proj.weight.zero_()
    prompt, canvas = tokens(20), tokens(CANVAS, 1)
    base = answer(model, prompt, canvas)
    for at, counts in ((12, False), (13, True), (19, True)):  # 20 - (8 - 1) = 13 is the first in reach
        other = prompt.clone()
        other[0, at] = (other[0, at] + 1) % 64
        assert torch.equal(answer(model, other, canvas), base) != counts


@torch.inference_mode()
def test_hidden_states_of_encoded_tokens(model: DiffusionGemma) -> None:
    """Those that training reads: causal, so the last of a shorter prompt is the same."""
    context = PlainContext(model.config)
    states = model.encode(tokens(10), places(0, 10), context, hidden=True)
    assert states is not None and states.shape == (1, 10, 64)
    shorter = model.encode(tokens(10)[:, :6], places(0, 6), PlainContext(model.config), hidden=True)
    assert shorter is not None and torch.allclose(states[:, :6], shorter, atol=1e-5)
    plain = PlainContext(model.config)
    assert model.encode(tokens(10), places(0, 10), plain) is None
    for layer in plain.keys:
        assert torch.equal(plain.keys[layer], context.keys[layer])


@torch.inference_mode()
def test_the_router_is_logged_layer_by_layer(model: DiffusionGemma) -> None:
    context, log = PlainContext(model.config), RouterLog()
    model.encode(tokens(5), places(0, 5), context, router_log=log)
    assert len(log) == 2  # the last layer of an encoding owes no routing
    log.clear()
    model.denoise(tokens(CANVAS), places(5, CANVAS), context, router_log=log)
    assert [(p.shape, index.shape) for p, index in log] == [((CANVAS, 4), (CANVAS, 2))] * 3


class TestProtocol:
    """What every family has."""

    @torch.inference_mode()
    def test_embedding_scale_and_soft_embedding(self, model: DiffusionGemma) -> None:
        assert float(model.embedding_scale) == 8.0  # the root of 64
        table = model.embedding
        assert isinstance(table, Tensor)
        certain = torch.eye(64)[[3, 7]]
        assert torch.allclose(model.soft_embedding(certain), 8 * table[[3, 7]])
        assert torch.allclose(model.soft_embedding(certain), model.embed(torch.tensor([3, 7])))
        mixed = model.soft_embedding(torch.tensor([[0.25] * 4 + [0.0] * 60]))
        assert torch.allclose(mixed[0], 2 * table[:4].sum(0), atol=1e-5)

    @pytest.mark.parametrize("width", [40, 64, 67 * 2])
    def test_the_scale_is_rounded_to_the_type_of_activations(self, width: int) -> None:
        model = tiny_model(hidden_size=width)
        assert float(model.embedding_scale) == float(torch.tensor(math.sqrt(width)))
        assert model.bfloat16().embedding_scale.dtype == model.dtype == torch.bfloat16
        assert float(model.embedding_scale) == float(torch.tensor(math.sqrt(width)).bfloat16())

    @torch.inference_mode()
    def test_logits_are_capped(self, model: DiffusionGemma) -> None:
        """c tanh(x / c): nothing beyond c, order kept, small ones as they are."""
        head = model.head
        assert isinstance(head, Tensor)
        hidden = torch.randn(5, 64) * torch.tensor([1e-3, 0.1, 1.0, 10.0, 1000.0])[:, None]
        raw, capped = hidden @ head.T, model.logits(hidden)
        assert capped.dtype == torch.float32 and capped.abs().max() <= 30
        expected = [[30 * math.tanh(x / 30) for x in row] for row in raw.tolist()]
        assert torch.allclose(capped, torch.tensor(expected), atol=1e-4)
        assert torch.equal(capped[1].argsort(), raw[1].argsort())
        assert torch.allclose(capped[0], raw[0], rtol=1e-3)

    @torch.inference_mode()
    def test_without_a_cap_logits_are_the_product(self) -> None:
        model = hole_model()
        hidden = 1000 * torch.randn(3, 32)
        assert model.lm_head is not None
        assert torch.equal(model.logits(hidden), model.lm_head(hidden))

    def test_tied_and_untied_heads(self, model: DiffusionGemma) -> None:
        assert model.lm_head is None and model.head is model.embedding
        untied = tiny_model(tie_word_embeddings=False)
        assert untied.head is not untied.embedding
        assert isinstance(untied.head, Tensor) and untied.head.shape == (64, 64)

    def test_a_quantised_head_gives_no_logits(self) -> None:
        model = tiny_model()
        model.embed_tokens = torch.nn.Identity()
        with pytest.raises(TypeError, match=r"predictions \(ops.predict\), not logits; load it with a dtype"):
            model.logits(torch.randn(1, 64))
        assert not issubclass(QuantVocabulary, Tensor)  # which is what stands there

    def test_types_and_devices_are_the_norms(self, model: DiffusionGemma) -> None:
        assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
        elsewhere = DiffusionGemma(tiny_config(), device="meta", dtype=torch.float16)
        assert (elsewhere.device.type, elsewhere.dtype) == ("meta", torch.float16)

    def test_rotary_frequencies_are_never_rounded(self) -> None:
        model = tiny_model().bfloat16()
        assert model._full_frequencies.dtype == model._sliding_frequencies.dtype == torch.float32

    def test_a_family_without_self_conditioning_or_training(self) -> None:
        model = hole_model()
        assert isinstance(model, Model) and model.self_conditioning is None
        assert model.store == "tensors"
        model.fuse()  # by default nothing
        assert [type(layer).__name__ for layer in model.layers] == ["HoleLayer", "HoleLayer"]
        with pytest.raises(NotImplementedError, match="HoleModel gives no states of encoded tokens"):
            model.encode(tokens(3), places(0, 3), PlainContext(model.config), hidden=True)

    @torch.inference_mode()
    def test_its_encode_and_denoise_are_one_pass_in_two(self) -> None:
        model, together = hole_model(), PlainContext(HoleConfig())
        prompt, canvas = tokens(32), tokens(16, 1)
        apart = PlainContext(HoleConfig())
        assert isinstance(model, HoleModel)
        assert model.encode(prompt, places(0, 32), apart) is None
        expected = model.denoise(canvas, places(32, 16), apart)
        found = model(torch.cat((prompt, canvas), 1), places(0, 48), together, 32)
        assert found.shape == (1, 16, 32) and torch.allclose(found, expected, atol=1e-5)
        assert torch.allclose(together.keys[1], apart.keys[1], atol=1e-5)
