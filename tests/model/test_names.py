"""Names of weights: every one has one name in either kind of file, and comes back from it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvaslm.model import registry
from canvaslm.model.diffusion_gemma.gguf_names import ROPE_FREQS, from_gguf, gguf_order, to_gguf
from canvaslm.model.diffusion_gemma.hf_names import (
    EMBEDDING,
    HEAD,
    copies_of,
    part_of,
    place_of,
    stand_in,
    to_hf,
    weight_shapes,
)
from canvaslm.model.diffusion_gemma.shapes import SHAPES
from canvaslm.model.names import Place
from tests.second_family import NAMES as OTHER_NAMES
from tests.second_family import HoleConfig
from tests.tiny import tiny_config

TIED = tiny_config()
UNTIED = tiny_config(tie_word_embeddings=False)
NAMES = list(weight_shapes(UNTIED))


@pytest.mark.parametrize("config", [TIED, UNTIED, SHAPES["26b"], SHAPES["small"]])
def test_every_weight_has_one_gguf_name_and_comes_back_from_it(config: object) -> None:
    assert isinstance(config, type(TIED))
    names = list(weight_shapes(config))
    stored = [to_gguf(name) for name in names]
    assert len(set(stored)) == len(names)
    assert [from_gguf(name) for name in stored] == [(name, None) for name in names]


def test_every_weight_has_one_checkpoint_name_and_comes_back_from_it() -> None:
    stored = [to_hf(name) for name in NAMES]
    copies = [copy for name in NAMES for copy in copies_of(name)]
    assert len({*stored, *copies}) == len(stored) + len(copies)
    assert [place_of(name) for name in stored] == [Place("weight", name) for name in NAMES]
    assert all(place_of(copy).role == "copy" for copy in copies)


def test_gguf_names_spelled_out() -> None:
    """As llama.cpp's converter writes them; a typo would load nothing."""
    assert {to_gguf(name) for name in weight_shapes(UNTIED) if not name.startswith("layers.1.")} == {
        "token_embd.weight", "output.weight", "output_norm.weight",
        "self_cond_pre_norm.weight", "self_cond_gate.weight", "self_cond_up.weight", "self_cond_down.weight",
        "blk.0.attn_norm.weight", "blk.0.attn_q.weight", "blk.0.attn_q_norm.weight", "blk.0.attn_k.weight",
        "blk.0.attn_k_norm.weight", "blk.0.attn_v.weight", "blk.0.attn_output.weight",
        "blk.0.post_attention_norm.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "blk.0.post_ffw_norm_1.weight",
        "blk.0.ffn_gate_inp.scale", "blk.0.ffn_gate_inp.weight", "blk.0.pre_ffw_norm_2.weight",
        "blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.ffn_down_exps.scale",
        "blk.0.post_ffw_norm_2.weight", "blk.0.post_ffw_norm.weight", "blk.0.layer_output_scale.weight",
        "blk.0.enc_layer_output_scale.weight",
    }  # fmt: skip


def test_further_gguf_names_that_are_read() -> None:
    assert from_gguf("self_cond_norm.weight") == ("self_conditioning.pre_norm.weight", None)
    assert from_gguf("blk.11.ffn_gate_exps.weight") == ("layers.11.experts.gate_up_proj", 0)
    assert from_gguf("blk.11.ffn_up_exps.weight") == ("layers.11.experts.gate_up_proj", 1)
    assert from_gguf(ROPE_FREQS) is None  # a table, not a weight


@pytest.mark.parametrize(
    "name",
    [
        "", "blk", "blk.0", "blk.0.", "blk.00.attn_q.weight", "blk.-1.attn_q.weight", "blk.0.attn_q",
        "blk.0.attn_q.weight.weight", " blk.0.attn_q.weight", "blk.0.attn_q.weight\n", "blk.0.output.weight",
        "blk.100000.attn_q.weight", "blk.٣.attn_q.weight", "attn_q.weight", "output", "x.__class__",
    ],
)  # fmt: skip
def test_other_gguf_names_are_not_known(name: str) -> None:
    assert from_gguf(name) is None


@pytest.mark.parametrize(
    "name", ["", "layers.0", "layers.0.self_attn.q_proj", "layers.00.layer_scalar", "head"]
)
def test_what_is_no_weight_of_ours_has_no_gguf_name(name: str) -> None:
    with pytest.raises(KeyError):
        to_gguf(name)


def test_the_order_of_a_file_is_whole_tensors_then_layers() -> None:
    names = list(weight_shapes(tiny_config(num_layers=12, layer_types=("full_attention",) * 12)))
    ordered = sorted(names, key=gguf_order)
    assert ordered[0] == EMBEDDING
    numbers = [int(match[1]) if (match := re.match(r"layers\.(\d+)\.", name)) else -1 for name in ordered]
    assert numbers == sorted(numbers)  # by number, not by text: 2 before 10
    assert len({gguf_order(name) for name in names}) == len(names)
    first = [name.removeprefix("layers.0.") for name in ordered if name.startswith("layers.0.")]
    assert first[:3] == ["input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.q_norm.weight"]
    assert first[-2:] == ["layer_scalar", "encoder_layer_scalar"]


@given(st.sampled_from(NAMES))
def test_the_outer_prefix_may_be_missing(name: str) -> None:
    """A base model was saved: the same place, for weights and for copies."""
    for hf in (to_hf(name), *copies_of(name)):
        assert place_of(hf.removeprefix("model.")) == place_of(hf)


@given(st.text(max_size=30))
def test_no_name_is_refused_by_an_exception(name: str) -> None:
    """Names come out of files: whatever stands there has a place, or none."""
    assert place_of(name).role in ("weight", "copy", "vision", "unknown")
    assert place_of(f"model.decoder.{name}").role in ("weight", "unknown")
    found = from_gguf(name)
    assert found is None or found[0]


def test_the_encoder_has_scalars_of_its_own_and_copies_of_the_rest() -> None:
    encoder = "model.encoder.language_model."
    assert to_hf("layers.1.encoder_layer_scalar") == f"{encoder}layers.1.layer_scalar"
    own = {name for name in NAMES if not copies_of(name)}
    assert {re.sub(r"\d+", "N", name) for name in own} == {
        HEAD, "layers.N.layer_scalar", "layers.N.encoder_layer_scalar",
        "self_conditioning.pre_norm.weight", "self_conditioning.gate_proj.weight",
        "self_conditioning.up_proj.weight", "self_conditioning.down_proj.weight",
    }  # fmt: skip
    assert copies_of("norm.weight") == (f"{encoder}norm.weight",)


def test_only_the_encoders_scalars_have_a_stand_in() -> None:
    for name in NAMES:
        expected = name.replace("encoder_layer_scalar", "layer_scalar") if "encoder_layer" in name else None
        assert stand_in(name) == expected
        assert expected is None or expected in NAMES


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("embed_tokens.weight", "embedding"), ("lm_head.weight", "head"), ("norm.weight", "norms"),
        ("self_conditioning.gate_proj.weight", "self-conditioning"),
        ("self_conditioning.pre_norm.weight", "self-conditioning"),
        ("layers.3.self_attn.q_norm.weight", "attention"), ("layers.3.self_attn.o_proj.weight", "attention"),
        ("layers.3.mlp.up_proj.weight", "dense MLP"), ("layers.3.router.scale", "router"),
        ("layers.3.experts.down_proj", "experts"), ("layers.3.layer_scalar", "norms"),
        ("layers.3.pre_feedforward_layernorm_2.weight", "norms"),
    ],
)  # fmt: skip
def test_the_part_a_weight_belongs_to(name: str, part: str) -> None:
    assert part_of(name) == part


def test_shapes_of_the_released_model_by_hand() -> None:
    """From the published sizes; their product is what makes it "26B"."""
    shapes = weight_shapes(SHAPES["26b"])
    assert shapes["embed_tokens.weight"] == (262_144, 2816)
    assert shapes["layers.0.self_attn.q_proj.weight"] == (16 * 256, 2816)
    assert shapes["layers.0.self_attn.v_proj.weight"] == (8 * 256, 2816)
    assert shapes["layers.5.self_attn.q_proj.weight"] == (16 * 512, 2816)
    assert shapes["layers.5.self_attn.k_proj.weight"] == (2 * 512, 2816)
    assert "layers.5.self_attn.v_proj.weight" not in shapes
    assert shapes["layers.29.experts.gate_up_proj"] == (128, 2 * 704, 2816)
    assert shapes["layers.29.experts.down_proj"] == (128, 2816, 704)
    assert "lm_head.weight" not in shapes
    total = 0
    for shape in shapes.values():
        count = 1
        for size in shape:
            count *= size
        total += count
    assert 25e9 < total < 27e9


def test_a_family_without_copies_or_stand_ins_says_none() -> None:
    for name in OTHER_NAMES.weight_shapes(HoleConfig()):
        assert OTHER_NAMES.copies_of(name) == ()
        assert OTHER_NAMES.stand_in(name) is None
        assert OTHER_NAMES.place_of(OTHER_NAMES.to_hf(name)) == Place("weight", name)
    assert OTHER_NAMES.stand_in_note == ""


def test_the_registrys_table_is_this_familys() -> None:
    family = registry.family_of(TIED)
    assert family.names.embedding in weight_shapes(TIED)
    assert family.names.head in weight_shapes(UNTIED) and family.names.head not in weight_shapes(TIED)
    gguf = family.gguf
    assert gguf is not None
    assert gguf.is_table(ROPE_FREQS) and not any(gguf.is_table(gguf.to_gguf(name)) for name in NAMES)
    assert gguf.architectures[0] == "diffusion-gemma"
