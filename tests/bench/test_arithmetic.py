from __future__ import annotations

import ctypes

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from canvaslm.bench.arithmetic import (
    ATTENTION,
    Held,
    denoise_macs,
    encode_macs,
    held,
    weight_bytes,
)
from canvaslm.model import PlainContext
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.ops import cpu
from canvaslm.ops.experts import experts_grouped
from canvaslm.weights.synth import SYNTH_SHAPES
from tests.tiny import tiny_config, tiny_model


def grouped(model: DiffusionGemma) -> DiffusionGemma:
    """Computes only the experts that were chosen, as a large model does."""
    for layer in model.layers:
        layer.experts.compute = experts_grouped
    return model


@torch.no_grad()
def test_products_are_those_that_torch_counts() -> None:
    """Attention is left out: torch's counter does not know the grouped kernel on a CPU."""
    model = grouped(tiny_model())
    config, context = model.config, PlainContext(model.config)
    places = config.canvas_length
    with FlopCounterMode(display=False) as encoding:
        model.encode(torch.arange(5)[None], torch.arange(5)[None], context)
    with FlopCounterMode(display=False) as denoising:
        soft = torch.randn(1, places, config.hidden_size)
        hidden = model.denoise(torch.arange(places)[None], 5 + torch.arange(places)[None], context, soft)
        model.soft_embedding(model.logits(hidden).softmax(-1))
    encoded, denoised = encode_macs(config, 0, 5), denoise_macs(config, 5)
    assert encoding.get_total_flops() == 2 * (sum(encoded.values()) - encoded[ATTENTION])
    assert denoising.get_total_flops() == 2 * (sum(denoised.values()) - denoised[ATTENTION])


def test_attention_meets_the_window_and_the_canvas() -> None:
    config = (
        tiny_config()
    )  # a sliding layer with 8 tokens, 4 heads of 16; a full one, 4 heads of 32; canvas 8
    assert denoise_macs(config, 0)[ATTENTION] == 2 * 8 * 8 * (64 + 128)
    assert denoise_macs(config, 100)[ATTENTION] == 2 * 8 * ((7 + 8) * 64 + 108 * 128)
    # Encoding: the last layer, the full one here, attends to nothing.
    assert encode_macs(config, 0, 3)[ATTENTION] == 2 * 64 * (1 + 2 + 3)
    assert encode_macs(config, 10, 3)[ATTENTION] == 2 * 64 * (8 + 8 + 8)


def test_chunks_add_up_to_the_whole() -> None:
    config = tiny_config()
    parts = [encode_macs(config, 0, 7), encode_macs(config, 7, 6)]
    assert {name: parts[0][name] + parts[1][name] for name in parts[0]} == encode_macs(config, 0, 13)


def test_the_full_size_step_is_1172_gmac_and_attention() -> None:
    work = denoise_macs(SYNTH_SHAPES["26b"], 128)
    assert (sum(work.values()) - work[ATTENTION]) / 1e9 == pytest.approx(1172, abs=1)


def test_every_weight_is_counted_once() -> None:
    model = tiny_model()
    frequencies = 16 // 2 + 32 // 2  # of the rotary tables, which are no parameters
    stored = sum(t.numel() for t in model.state_dict().values())
    assert held(model) == Held(memory=4 * (stored + frequencies))
    read = weight_bytes(model, 10_000)  # so many tokens choose every expert
    norms = [t for n, t in model.named_parameters() if "norm" in n.split(".")[-2]]
    pieces = {"projections": "_attn", "dense_mlp": ".mlp.", "experts": ".experts."}
    for part, mark in pieces.items():
        weights = [
            t for n, t in model.named_parameters() if mark in n and not any(t is norm for norm in norms)
        ]
        assert read[part] == 4 * sum(t.numel() for t in weights), part
    table = 4 * model.embed_tokens.weight.numel()
    assert read["head_sampling"] == table
    assert read["self_conditioning"] == table + held(model.self_conditioning).total


def test_few_tokens_do_not_choose_every_expert() -> None:
    model = tiny_model(num_experts=8, top_k_experts=2)
    whole = weight_bytes(model, 10_000)["experts"]
    assert weight_bytes(model, 1)["experts"] == pytest.approx(whole / 4)
    assert weight_bytes(model, 2)["experts"] == pytest.approx(whole * (1 - 0.75**2))


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_weights_in_somebody_elses_memory_are_not_the_process_s_own() -> None:
    from canvaslm.ops.cpu.repacked import BorrowedMemory, RepackedMatrix

    own = RepackedMatrix("Q8_0", 32, 32)
    buffer = ctypes.create_string_buffer(own.nbytes + 64)
    lent = BorrowedMemory(-(-ctypes.addressof(buffer) // 64) * 64, own.nbytes, buffer)
    assert held([own, RepackedMatrix("Q8_0", 32, 32, lent)]) == Held(memory=own.nbytes, file=own.nbytes)
