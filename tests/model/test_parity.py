"""Our model against transformers' reference: the same weights, the same logits, the same routing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.model import PlainContext
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.model.protocol import RouterLog
from canvaslm.weights.loading.load import load_model
from tests.tiny import hf_model, save_hf, tiny_config

transformers = pytest.importorskip("transformers")

S, F = "sliding_attention", "full_attention"
TOLERANCE = 1e-4

# One line a world: what differs from the tiny default, and the prompt's length (the
# window is 8, the canvas 8).
WORLDS: dict[str, tuple[dict[str, Any], int]] = {
    "context shorter than the window": ({}, 5),
    "context one short of the window": ({}, 7),
    "context equal to the window": ({}, 8),
    "context one longer than the window": ({}, 9),
    "context much longer than the window": ({}, 37),
    "one token of context": ({}, 1),
    "canvas longer than the window": ({"canvas_length": 24}, 13),
    "canvas shorter than the window": ({"canvas_length": 3, "sliding_window": 16}, 21),
    "canvas of one token": ({"canvas_length": 1}, 10),
    "window of three": ({"sliding_window": 3}, 6),
    "window of two": ({"sliding_window": 2}, 6),
    "six layers, 5 to 1": ({"num_layers": 6, "layer_types": (S, S, S, S, S, F)}, 19),
    "full layers only": ({"layer_types": (F, F)}, 12),
    "one layer": ({"num_layers": 1, "layer_types": (F,)}, 12),
    "alternating layers": ({"num_layers": 4, "layer_types": (F, S, S, F)}, 15),
    "one key head": ({"num_kv_heads": 1}, 11),
    "as many key heads as heads": ({"num_kv_heads": 4, "num_global_kv_heads": 4}, 11),
    "equal head sizes": ({"head_dim": 16, "global_head_dim": 16, "num_global_kv_heads": 2}, 11),
    "one expert a token": ({"top_k_experts": 1}, 14),
    "all experts": ({"top_k_experts": 4}, 14),
    "sixteen experts": ({"num_experts": 16, "top_k_experts": 8, "moe_intermediate_size": 8}, 14),
    "whole head rotates": ({"partial_rotary_factor": 1.0}, 20),
    "half the head rotates": ({"partial_rotary_factor": 0.5}, 20),
    "untied head": ({"tie_word_embeddings": False}, 12),
    "odd sizes": ({"vocab_size": 67, "hidden_size": 40, "intermediate_size": 56}, 12),
    "tight soft-cap": ({"softcap": 3.0}, 12),
}


def both(folder: Path, changes: dict[str, Any], **saving: Any) -> tuple[Any, DiffusionGemma]:
    """transformers' model and ours, loaded from what transformers saved."""
    theirs = hf_model(
        tiny_config(**{k: v for k, v in changes.items() if k != "softcap"}), seed=len(str(changes)), scale=0.5
    )
    if "softcap" in changes:
        theirs.config.text_config.final_logit_softcapping = theirs.final_logit_softcapping = changes[
            "softcap"
        ]
    ours = load_model(save_hf(theirs, folder, **saving), dtype=torch.float32).model
    assert isinstance(ours, DiffusionGemma)
    return theirs, ours


class Routes:
    """Collects which experts transformers' routers choose."""

    def __init__(self, model: Any) -> None:
        self.seen: list[torch.Tensor] = []
        for name, module in model.named_modules():
            if name.endswith("router"):
                module.register_forward_hook(lambda _m, _i, out: self.seen.append(out[2]))

    def take(self) -> list[torch.Tensor]:
        seen, self.seen = self.seen, []
        return seen


def same_routes(theirs: list[torch.Tensor], ours: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(theirs) == len(ours) and all(
        torch.equal(a.sort(-1).values, b.sort(-1).values) for a, (_, b) in zip(theirs, ours, strict=True)
    )


@pytest.mark.parametrize("world", WORLDS)
@torch.no_grad()
def test_encode_and_denoise_equal_the_reference(world: str, tmp_path: Path) -> None:
    changes, length = WORLDS[world]
    theirs, ours = both(tmp_path, changes)
    config, routes = ours.config, Routes(theirs)
    prompt = torch.randint(0, config.vocab_size, (2, length))
    canvas = torch.randint(0, config.vocab_size, (2, config.canvas_length))
    context = PlainContext(config)
    log: RouterLog = []
    ours.encode(prompt, torch.arange(length).expand(2, -1), context, hidden=True, router_log=log)
    places = torch.arange(length, length + config.canvas_length).expand(2, -1)

    cache, previous, soft = None, None, None
    for step in range(4):
        prompt_or_cache = {"input_ids": prompt} if step == 0 else {"past_key_values": cache}
        out = theirs(decoder_input_ids=canvas, self_conditioning_logits=previous, **prompt_or_cache)
        logits = ours.logits(ours.denoise(canvas, places, context, soft, router_log=log))
        assert (logits - out.logits).abs().max() < TOLERANCE
        assert same_routes(routes.take(), log)
        log.clear()
        # The next step is conditioned on this one's temperature-scaled logits.
        cache, previous = out.past_key_values, out.logits / 0.7
        soft = ours.soft_embedding((logits / 0.7).softmax(-1))
        canvas = torch.where(torch.rand(canvas.shape) < 0.5, logits.argmax(-1), canvas)


@torch.no_grad()
def test_second_canvas_sees_the_first(tmp_path: Path) -> None:
    theirs, ours = both(tmp_path, {})
    prompt, first = torch.randint(0, 64, (1, 6)), torch.randint(0, 64, (1, 8))
    canvas = torch.randint(0, 64, (1, 8))
    cache = theirs(input_ids=prompt, decoder_input_ids=canvas).past_key_values
    reference = theirs(input_ids=first, past_key_values=cache, decoder_input_ids=canvas).logits
    context = PlainContext(ours.config)
    ours.encode(prompt, torch.arange(6)[None], context)
    ours.encode(first, torch.arange(6, 14)[None], context)
    logits = ours.logits(ours.denoise(canvas, torch.arange(14, 22)[None], context))
    assert (logits - reference).abs().max() < TOLERANCE


@pytest.mark.parametrize("lengths", [(3, 9, 6), (20, 4, 13), (8, 8, 1)])
@torch.no_grad()
def test_padded_batches(lengths: tuple[int, ...], tmp_path: Path) -> None:
    """Prompts of unequal length, padded on the left as transformers wants it."""
    theirs, ours = both(tmp_path, {"num_layers": 3, "layer_types": (S, S, F)})
    width = max(lengths)
    real = torch.arange(width)[None] >= torch.tensor([width - n for n in lengths])[:, None]
    prompt = torch.randint(1, 64, (len(lengths), width)).where(real, 0)
    canvas = torch.randint(0, 64, (len(lengths), 8))
    seen = torch.nn.functional.pad(real, (0, 8), value=True)
    reference = theirs(
        input_ids=prompt, attention_mask=real, decoder_input_ids=canvas, decoder_attention_mask=seen
    ).logits
    context = PlainContext(ours.config)
    ours.encode(prompt, torch.arange(width).where(real, -1), context)
    places = torch.arange(width, width + 8).expand(len(lengths), -1)
    logits = ours.logits(ours.denoise(canvas, places, context))
    assert (logits - reference).abs().max() < TOLERANCE


def test_worlds_are_enough() -> None:
    assert len(WORLDS) >= 20


@torch.no_grad()
def test_sharded_checkpoint_equals_single_file(tmp_path: Path) -> None:
    theirs, whole = both(tmp_path / "whole", {})
    sharded = load_model(
        save_hf(theirs, tmp_path / "shards", max_shard_size="20KB"), dtype=torch.float32
    ).model
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for (name, a), (_, b) in zip(whole.state_dict().items(), sharded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@torch.no_grad()
def test_bf16_is_close(tmp_path: Path) -> None:
    """bf16 rounds differently from transformers' bf16, but no more than bf16 rounds at all."""
    theirs, ours = both(tmp_path, {})
    theirs, ours = theirs.bfloat16(), ours.bfloat16()
    prompt, canvas = torch.randint(0, 64, (1, 12)), torch.randint(0, 64, (1, 8))
    reference = theirs(input_ids=prompt, decoder_input_ids=canvas).logits
    context = PlainContext(ours.config)
    ours.encode(prompt, torch.arange(12)[None], context)
    logits = ours.logits(ours.denoise(canvas, torch.arange(12, 20)[None], context))
    assert (logits - reference).abs().mean() < 0.05 * reference.std()
