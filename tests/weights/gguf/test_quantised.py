"""Models whose weights stay quantised: in plain torch equal to the unpacked model, on
native kernels close to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.engine import Driver, Engine
from canvaslm.model import Model, PlainContext
from canvaslm.model.diffusion_gemma.fused import FusedTextLayer
from canvaslm.model.diffusion_gemma.text import SelfConditioning
from canvaslm.ops import cpu
from canvaslm.ops.norm import RMSNorm
from canvaslm.ops.predict import Prediction, draw, predict
from canvaslm.ops.quantised import QuantExperts, QuantLinear, QuantVocabulary
from canvaslm.types import Committed, Finished, Params, Request
from canvaslm.weights.gguf.load import load_quantised
from canvaslm.weights.loading.load import load_model
from tests.tiny import tiny_model, write_tiny_gguf

KINDS = ["Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q4_0"]
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 160,
    "moe_intermediate_size": 96,
    "top_k_experts": 4,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One random model in every type. All experts run, so that rounding cannot choose another expert."""
    root = tmp_path_factory.mktemp("packed")
    model = tiny_model(seed=2, **SIZES)
    return {kind: write_tiny_gguf(model, root / f"{kind}.gguf", kind) for kind in KINDS}


@torch.inference_mode()
def one_step(model: Model) -> Prediction:
    """Encodes a prompt and denoises a canvas on a soft embedding."""
    context, places = PlainContext(model.config), model.config.canvas_length
    model.encode(torch.arange(20)[None] + 20, torch.arange(20)[None], context)
    soft = torch.randn(1, places, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    hidden = model.denoise(
        torch.arange(places)[None] + 30, torch.arange(20, 20 + places)[None], context, soft
    )
    draws = [draw(0, 0, 0, places, model.config.vocab_size, "cpu")]
    return predict(hidden, model.head, model.embedding, softcap=30.0, temperature=[0.7], draws=draws)


def relative(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return float((a - b).norm() / a.norm())


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("plain")
def test_unpacking_where_used_equals_unpacking_at_once(kind: str, files: dict[str, Path]) -> None:
    loaded = load_quantised(files[kind])
    kinds = {type(m) for m in loaded.model.modules()}
    assert {QuantLinear, QuantExperts, QuantVocabulary} <= kinds
    assert "plain PyTorch" in loaded.notes[-1]
    mine, whole = one_step(loaded.model), one_step(load_model(files[kind], dtype="float32").model)
    assert torch.equal(mine.argmax, whole.argmax)
    assert torch.equal(mine.sampled, whole.sampled)
    torch.testing.assert_close(mine.entropy, whole.entropy, atol=1e-3, rtol=1e-3)
    assert relative(whole.soft, mine.soft) < 1e-4


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
@pytest.mark.parametrize("kind", KINDS)
def test_native_kernels_are_close(kind: str, files: dict[str, Path]) -> None:
    """int8 activations cost about 1 % a product; two layers of a random model make a few of it."""
    loaded = load_quantised(files[kind])
    assert "native kernels" in loaded.notes[-1]
    assert all(isinstance(layer, FusedTextLayer) for layer in loaded.model.layers)
    mine, whole = one_step(loaded.model), one_step(load_model(files[kind], dtype="float32").model)
    assert (mine.argmax == whole.argmax).float().mean() >= 0.75
    assert 0 < relative(whole.soft, mine.soft) < 0.25
    assert relative(whole.entropy, mine.entropy) < 0.35


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
@pytest.mark.parametrize(("rows", "encoded"), [(2, 24), (2, 0), (1, 10)])
@torch.inference_mode()
def test_a_fused_layer_equals_the_plain_one_over_the_same_weights(
    rows: int, encoded: int, files: dict[str, Path]
) -> None:
    model: Any = load_quantised(files["Q8_0"]).model
    x = torch.randn(rows, 24, 256)
    positions = torch.arange(24).expand(rows, -1)
    for i, loaded in enumerate(model.layers):
        loaded.plain.layer_scalar.fill_(0.5)
        loaded.plain.encoder_layer_scalar.fill_(2.0)
        layer = FusedTextLayer(loaded.plain)
        half = model._ropes(positions)[i]
        rope: Any = tuple(torch.cat((table, table), -1) for table in half)
        outputs = []
        for one, table in ((layer, half), (layer.plain, rope)):
            context = PlainContext(model.config)
            outputs.append(one(x, positions, table, context, encoded=encoded))
        assert relative(outputs[1], outputs[0]) < 0.01  # a rounding to int8 may fall the other way
        fused, plain = PlainContext(model.config), PlainContext(model.config)
        layer.append_keys_values(x, positions, half, fused)
        layer.plain.append_keys_values(x, positions, rope, plain)
        torch.testing.assert_close(fused.keys[i], plain.keys[i], atol=0.02, rtol=0.02)
        torch.testing.assert_close(fused.values[i], plain.values[i], atol=0.02, rtol=0.02)


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
@torch.inference_mode()
def test_what_stands_around_the_layers_equals_the_plain_modules(files: dict[str, Path]) -> None:
    model: Any = load_quantised(files["Q8_0"]).model
    config = model.config
    x, soft = torch.randn(2, 2, 24, config.hidden_size)
    plain = SelfConditioning(config)
    del plain.gate_proj, plain.up_proj, plain.down_proj
    around = model.self_conditioning
    plain.fused, plain.pre_norm.weight = around.fused, around.pre_norm.weight
    for given in (None, soft):
        torch.testing.assert_close(around(x, given), plain(x, given), atol=0.02, rtol=0.02)
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.weight = model.norm.weight
    torch.testing.assert_close(model.norm(x), norm(x))


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
@torch.inference_mode()
def test_a_fused_layer_mixes_both_kinds_of_tokens_in_one_row_only(files: dict[str, Path]) -> None:
    model = load_quantised(files["Q8_0"]).model
    positions = torch.arange(24).expand(2, -1)
    rope = model._ropes(positions)[0]
    with pytest.raises(ValueError, match="in one row, not in 2"):
        model.layers[0](torch.randn(2, 24, 256), positions, rope, PlainContext(model.config), encoded=10)


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_top_tokens_of_a_packed_head(files: dict[str, Path]) -> None:
    engine = Engine(load_quantised(files["Q8_0"]).model)
    params = Params(max_new_tokens=8, max_denoising_steps=3, seed=1)
    (event,) = [
        e
        for e in Driver(engine).events(Request((5, 6, 7), params, top_logprobs=4))
        if isinstance(e, Committed)
    ]
    for token, logprob, best in zip(event.tokens, event.logprobs, event.top_logprobs, strict=True):
        assert len(best) == 4
        assert best[0][1] == pytest.approx(logprob, abs=0.02)  # the ranking reads logits kept in fp16
        assert token in [t for t, p in best if p > best[0][1] - 0.02]


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_a_crowd_changes_nothing_on_native_kernels(files: dict[str, Path]) -> None:
    model = load_quantised(files["Q4_K_M"]).model
    params = Params(max_new_tokens=16, max_denoising_steps=6)
    requests = [
        Request(tuple(range(5 + i, 30 + i)), Params(**{**params.__dict__, "seed": i})) for i in range(5)
    ]

    def outputs(batch: list[Request]) -> list[tuple[int, ...]]:
        engine = Engine(model)
        ids = [engine.submit(request) for request in batch]
        tokens: dict[int, tuple[int, ...]] = {}
        while engine.has_work:
            for event in engine.step():
                if not isinstance(event, Finished):
                    tokens[event.request_id] = tokens.get(event.request_id, ()) + event.tokens
        return [tokens[i] for i in ids]

    assert outputs(requests) == [outputs([request])[0] for request in requests]


def test_load_model_keeps_quantised_files_quantised(files: dict[str, Path]) -> None:
    model = load_model(files["Q8_0"]).model
    assert not isinstance(model.embed_tokens, torch.nn.Embedding)
    assert model.dtype == torch.float32
