"""Names of weights: exactly those transformers saves, tied and untied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from canvaslm.model.diffusion_gemma.hf_names import copies_of, part_of, place_of, to_hf, weight_shapes
from canvaslm.weights.safetensors_.header import read_header
from tests.tiny import tiny_config, tiny_model

VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")


def saved_names(folder: Path) -> set[str]:
    names = set(read_header(folder / "model.safetensors").tensors)
    return {name for name in names if not name.startswith(VISION)}


def test_the_exact_list_of_a_tied_checkpoint(tied: tuple[Path, Any]) -> None:
    assert saved_names(tied[0]) == {to_hf(name) for name in weight_shapes(tiny_config())}


def test_the_exact_list_of_an_untied_checkpoint(untied: tuple[Path, Any]) -> None:
    ours = weight_shapes(tiny_config(tie_word_embeddings=False))
    assert saved_names(untied[0]) == {hf for name in ours for hf in (to_hf(name), *copies_of(name))}


def test_a_tied_checkpoint_in_full(tied: tuple[Path, Any]) -> None:
    """Spelled out for one layer, so that a change of either side's rule is seen."""
    layer = "model.decoder.layers.1."
    assert {n.removeprefix(layer) for n in saved_names(tied[0]) if n.startswith(layer)} == {
        "input_layernorm.weight", "post_attention_layernorm.weight", "pre_feedforward_layernorm.weight",
        "pre_feedforward_layernorm_2.weight", "post_feedforward_layernorm.weight",
        "post_feedforward_layernorm_1.weight", "post_feedforward_layernorm_2.weight",
        # full layer: no v_proj
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.o_proj.weight",
        "self_attn.q_norm.weight", "self_attn.k_norm.weight",
        "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
        "router.proj.weight", "router.scale", "router.per_expert_scale",
        "experts.gate_up_proj", "experts.down_proj", "layer_scalar",
    }  # fmt: skip


@pytest.mark.parametrize("is_tied", [True, False])
def test_shapes_are_the_models(is_tied: bool) -> None:
    kinds = ("sliding_attention", "full_attention", "full_attention")
    model = tiny_model(tie_word_embeddings=is_tied, num_layers=3, layer_types=kinds)
    assert weight_shapes(model.config) == {name: tuple(t.shape) for name, t in model.state_dict().items()}


def test_places_undo_names() -> None:
    for name in weight_shapes(tiny_config(tie_word_embeddings=False)):
        assert (place_of(to_hf(name)).role, place_of(to_hf(name)).name) == ("weight", name)
        for copy in copies_of(name):
            assert (place_of(copy).role, place_of(copy).name) == ("copy", name)


@pytest.mark.parametrize(
    ("name", "role", "ours"),
    [
        ("decoder.norm.weight", "weight", "norm.weight"),  # saved without its outer class
        ("model.encoder.vision_tower.patch_embedder.input_proj.weight", "vision", ""),
        ("model.encoder.embed_vision.embedding_projection.weight", "vision", ""),
        # The encoder's scalar has one name alone, and self-conditioning is the decoder's.
        ("model.decoder.layers.0.encoder_layer_scalar", "unknown", ""),
        ("model.encoder.language_model.self_conditioning.pre_norm.weight", "unknown", ""),
        ("model.decoder.lm_head.weight", "unknown", ""),
        ("optimizer.state", "unknown", ""),
    ],
)
def test_places(name: str, role: str, ours: str) -> None:
    assert (place_of(name).role, place_of(name).name) == (role, ours)


def test_parts_cover_the_model() -> None:
    parts = {name: part_of(name) for name in weight_shapes(tiny_config(tie_word_embeddings=False))}
    assert set(parts.values()) == {
        "embedding", "attention", "dense MLP", "router", "experts", "self-conditioning", "norms", "head",
    }  # fmt: skip
    assert parts["layers.0.encoder_layer_scalar"] == "norms"
    assert parts["layers.0.experts.down_proj"] == "experts"
