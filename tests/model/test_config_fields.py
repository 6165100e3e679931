"""config.json field by field: what may be missing, what that means, and which sizes cannot go together."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvaslm.errors import BadConfig
from canvaslm.model.config import ConfigFields, check_tokens
from canvaslm.model.diffusion_gemma import DiffusionGemmaConfig
from canvaslm.model.diffusion_gemma.shapes import SHAPES
from canvaslm.model.registry import read_config
from tests.tiny import tiny_config

S, F = "sliding_attention", "full_attention"
REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "num_experts", "top_k_experts", "moe_intermediate_size",
)  # fmt: skip


def data(**text: Any) -> dict[str, Any]:
    """The tiny model's config.json; `text` changes its text_config, None takes a field away."""
    found: dict[str, Any] = json.loads(json.dumps(tiny_config().to_dict()))
    for name, value in text.items():
        if value is None:
            found["text_config"].pop(name, None)
        else:
            found["text_config"][name] = value
    return found


def read(found: dict[str, Any]) -> DiffusionGemmaConfig:
    config = read_config(found)
    assert isinstance(config, DiffusionGemmaConfig)
    return config


def problem(found: dict[str, Any]) -> str:
    with pytest.raises(BadConfig) as caught:
        read_config(found)
    return str(caught.value)


@pytest.mark.parametrize("name", REQUIRED)
def test_sizes_without_a_default_must_be_there(name: str) -> None:
    assert f"text_config.{name} should be a whole number, found None" in problem(data(**{name: None}))


@pytest.mark.parametrize(
    ("name", "field", "default"),
    [
        ("head_dim", "head_dim", 256), ("sliding_window", "sliding_window", 512),
        ("rms_norm_eps", "rms_norm_eps", 1e-6), ("final_logit_softcapping", "softcap", 30.0),
        ("max_position_embeddings", "max_position_embeddings", 131_072), ("pad_token_id", "pad_token_id", 0),
        ("bos_token_id", "bos_token_id", 2), ("eos_token_id", "eos_token_ids", (1,)),
    ],
)  # fmt: skip
def test_a_missing_field_has_transformers_default(name: str, field: str, default: object) -> None:
    assert getattr(read(data(**{name: None})), field) == default


def test_the_whole_files_defaults() -> None:
    found = data()
    del found["canvas_length"], found["tie_word_embeddings"]
    assert (read(found).canvas_length, read(found).tie_word_embeddings) == (256, True)
    assert read({**found, "tie_word_embeddings": None, "canvas_length": None}) == read(found)


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_token_ids_may_stand_at_the_top_and_the_texts_come_first(name: str) -> None:
    field = {"eos_token_id": "eos_token_ids"}.get(name, name)
    top = {**data(**{name: None}), name: 7}
    assert getattr(read(top), field) in (7, (7,))
    both = {**data(**{name: 5}), name: 7}
    assert getattr(read(both), field) in (5, (5,))


def test_token_ids_that_are_null() -> None:
    found = data()
    found["text_config"] |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = read(found)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_ids) == (0, None, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k_experts": 5}, "top_k_experts = 5 exceeds num_experts = 4"),
        ({"num_attention_heads": 3}, "num_kv_heads = 2 does not divide the 3 heads"),
        ({"head_dim": 15}, "head_dim = 15 is odd; rotary embedding needs pairs"),
        ({"sliding_window": 1}, "sliding_window = 1 leaves a canvas no context; the smallest is 2"),
        ({"sliding_window": 0}, "sliding_window = 0 is out of range (1 .. 2147483647)"),
        ({"vocab_size": 2**31}, "vocab_size = 2147483648 is out of range (1 .. 2147483647)"),
        ({"num_hidden_layers": 4097}, "num_hidden_layers = 4097 is out of range (1 .. 4096)"),
        ({"head_dim": 2**16 + 2}, "head_dim = 65538 is out of range (1 .. 65536)"),
        ({"layer_types": [F]}, "layer_types has 1 entries, num_hidden_layers is 2"),
        ({"layer_types": [S, S], "per_layer_config": {}}, "layer_types must end with 'full_attention'"),
        ({"layer_types": ["linear", F]}, "layer_types holds 'linear'"),
        ({"eos_token_id": [1, 64]}, "special token id 64 is outside the vocabulary of 64"),
        ({"pad_token_id": -1}, "special token id -1 is outside the vocabulary of 64"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0 must be a positive, finite number"),
        ({"final_logit_softcapping": -30.0}, "final_logit_softcapping = -30.0 must be a positive"),
        ({"attention_bias": True}, "text_config.attention_bias = True is not supported (only False)"),
        (
            {"hidden_activation": "silu"},
            "hidden_activation = 'silu' is not supported (only 'gelu_pytorch_tanh')",
        ),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers = 2 is not supported (only 0)"),
        ({"attention_k_eq_v": False}, "attention_k_eq_v = False is not supported (only True)"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all' is not supported"),
        ({"new_idea": 1}, "unknown field text_config.new_idea"),
    ],
)
def test_what_does_not_go_together_is_named(changes: dict[str, Any], message: str) -> None:
    assert message in problem(data(**changes))


def test_unknown_and_unsupported_fields_of_the_top() -> None:
    assert "unknown field surprise; canvaslm does not know what it changes" in problem(
        {**data(), "surprise": 1}
    )
    assert "audio input is not supported" in problem({**data(), "audio_config": {"layers": 2}})
    assert read({**data(), "audio_config": None, "_name_or_path": "x", "id2label": {}}) == tiny_config()
    assert read({**data(), "vision_config": {"hidden_size": 3}}) == replace(tiny_config(), has_vision=True)


@pytest.mark.parametrize("text", [None, [], "text", 3])
def test_without_a_text_config_it_is_no_model(text: object) -> None:
    assert "text_config is missing" in problem({**data(), "text_config": text})


ROPE = {
    S: {"rope_type": "default", "rope_theta": 7.0},
    F: {"rope_type": "proportional", "rope_theta": 9.0, "partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize(
    ("rope", "thetas_and_share"),
    [
        (None, (10_000.0, 1_000_000.0, 0.25)),
        ({}, (10_000.0, 1_000_000.0, 0.25)),
        (ROPE, (7.0, 9.0, 0.5)),
        ({F: {"rope_theta": 5}}, (10_000.0, 5.0, 1.0)),  # what is said of full layers is all that is said
        ({S: {"rope_theta": 5}}, (5.0, 1_000_000.0, 0.25)),
        ({S: {"partial_rotary_factor": 1.0}, F: None}, (10_000.0, 1_000_000.0, 0.25)),
    ],
)
def test_rotary_fields(rope: dict[str, Any] | None, thetas_and_share: tuple[float, float, float]) -> None:
    config = read(data(rope_parameters=rope))
    assert (
        config.rope_theta, config.global_rope_theta, config.partial_rotary_factor
    ) == thetas_and_share  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (S, {"rope_type": "yarn"}, "only rope_type 'default' over the whole head"),
        (S, {"partial_rotary_factor": 0.5}, "only rope_type 'default' over the whole head"),
        (S, {"factor": 8.0}, "rope_parameters.sliding_attention.factor is not supported"),
        (F, {"rope_type": "default"}, "only 'proportional' is supported"),
        (F, {"rope_type": 3}, "rope_parameters.full_attention.rope_type should be a text, found 3"),
        (F, {"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5 is not in (0, 1]"),
        (F, {"rope_theta": float("inf")}, "rope_theta = inf must be a positive, finite number"),
        (F, {"rope_theta": 10**400}, "must be a positive, finite number"),
        (F, {"attention_factor": 1, "beta": 1}, "rope_parameters.full_attention.attention_factor is not"),
    ],
)
def test_other_rotary_embeddings_are_refused(kind: str, change: dict[str, Any], message: str) -> None:
    assert message in problem(data(rope_parameters={**ROPE, kind: {**ROPE[kind], **change}}))


def test_sizes_of_full_layers_from_the_older_fields() -> None:
    older = data(per_layer_config=None, global_head_dim=8, num_global_key_value_heads=4)
    assert (read(older).global_head_dim, read(older).num_global_kv_heads) == (8, 4)
    bare = read(data(per_layer_config=None))
    assert (bare.global_head_dim, bare.num_global_kv_heads) == (512, 2)  # the sliding layers' key heads


def test_sizes_of_full_layers_per_layer() -> None:
    entry = {"head_dim": 8, "num_key_value_heads": 4}
    types = {"num_hidden_layers": 3, "layer_types": [F, S, F]}
    config = read(data(**types, per_layer_config={"0": entry, "2": entry}))
    assert (config.global_head_dim, config.num_global_kv_heads) == (8, 4)
    by_number: Any = {0: entry, 2: entry}  # as transformers' own dictionaries have it
    assert read(data(**types, per_layer_config=by_number)) == config
    absent = read(data(per_layer_config={}))
    assert (absent.global_head_dim, absent.num_global_kv_heads) == (16, 2)  # as the sliding layers


@pytest.mark.parametrize(
    ("per_layer", "message"),
    [
        ({"1": {"head_dim": 8, "window": 3}}, "per_layer_config.1 has unsupported overrides"),
        ({"0": {"head_dim": 8}, "1": {"head_dim": 8}}, "per_layer_config.0 has unsupported overrides"),
        ({"1": {"head_dim": 8.0}}, "text_config.per_layer_config.1.head_dim should be a whole number"),
        ({"1": {"head_dim": 0}}, "text_config.per_layer_config.1.head_dim = 0 is out of range"),
        ({"1": {"num_key_value_heads": 3}}, "num_global_kv_heads = 3 does not divide the 4 heads"),
        ({"1": {"head_dim": 7}}, "global_head_dim = 7 is odd"),
    ],
)
def test_other_sizes_per_layer_are_refused(per_layer: dict[str, Any], message: str) -> None:
    assert message in problem(data(per_layer_config=per_layer))


def test_full_layers_of_different_sizes_are_refused() -> None:
    types = {"num_hidden_layers": 2, "layer_types": [F, F]}
    found = data(**types, per_layer_config={"0": {"head_dim": 8}, "1": {"head_dim": 4}})
    assert "gives full layers different sizes" in problem(found)


@pytest.mark.parametrize(("count", "full"), [(1, [0]), (5, [4]), (6, [5]), (7, [5, 6]), (13, [5, 11, 12])])
def test_without_layer_types_every_sixth_and_the_last_are_full(count: int, full: list[int]) -> None:
    config = read(data(layer_types=None, num_hidden_layers=count, per_layer_config=None))
    assert [i for i in range(count) if not config.is_sliding(i)] == full


@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes_read_back_and_are_gemmas_pattern(name: str) -> None:
    config = SHAPES[name]
    assert read(config.to_dict()) == config
    assert [i for i in range(config.num_layers) if not config.is_sliding(i)] == list(
        range(5, config.num_layers, 6)
    )


@pytest.mark.parametrize("count", [1, 3, 6, 7])
def test_fewer_layers_of_a_model_are_a_model(count: int) -> None:
    whole = SHAPES["26b"]
    some = whole.with_layers(count)
    assert (some.num_layers, len(some.layer_types), some.layer_types[-1]) == (count, count, F)
    assert some.layer_types[:-1] == whole.layer_types[: count - 1]
    assert replace(some, num_layers=30, layer_types=whole.layer_types) == whole
    assert read(some.to_dict()) == some


def test_what_each_kind_of_layer_has() -> None:
    config = tiny_config()
    assert [config.head_dim_of(i) for i in (0, 1)] == [16, 32]
    assert [config.kv_heads_of(i) for i in (0, 1)] == [2, 1]
    assert [config.window_of(i) for i in (0, 1)] == [8, None]
    assert config.active_experts() == (2, 4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_made_in_python_or_read_the_same_sizes_are_refused(data: st.DataObject) -> None:
    """A size that is not positive, or absurd, never makes a configuration."""
    whole = [f.name for f in fields(DiffusionGemmaConfig) if f.type == "int" and "token" not in f.name]
    name = data.draw(st.sampled_from([n for n in whole if n != "num_layers"]))
    value = data.draw(st.integers(max_value=0) | st.integers(min_value=2**31))
    with pytest.raises(BadConfig, match=name):
        tiny_config(**{name: value})


class TestFields:
    """The strict reader itself."""

    def test_null_stands_for_the_default_or_not(self) -> None:
        fields = ConfigFields({"a": None})
        assert fields.integer("a", 3) == 3
        assert fields.flag("a", True) is True
        assert fields.words("a") is None and fields.inner("a") is None
        assert fields.token("a", 5) is None and fields.tokens("a", (5,)) == ()
        assert (fields.token("b", 5), fields.tokens("b", (5, 6))) == (5, (5, 6))
        assert (fields.number("b", 2), fields.word("b", "x")) == (2.0, "x")
        with pytest.raises(BadConfig, match="a should be a number, found None"):
            fields.number("a", 1.0)
        with pytest.raises(BadConfig, match="a should be a text, found None"):
            fields.word("a", "x")

    @pytest.mark.parametrize("value", [True, False])
    def test_a_truth_value_is_no_number(self, value: bool) -> None:
        fields = ConfigFields({"a": value})
        for reader in (fields.integer, lambda n: fields.number(n, 1.0), lambda n: fields.token(n, 1)):
            with pytest.raises(BadConfig, match=f"a should be .*, found {value}"):
                reader("a")
        assert fields.flag("a", not value) is value

    def test_an_object_inside_has_its_whole_path_in_messages(self) -> None:
        inner = ConfigFields({"a": {"b": {"c": "x"}}}).inner("a")
        assert inner is not None
        deeper = inner.inner("b")
        assert deeper is not None
        with pytest.raises(BadConfig, match=r"config\.json: a\.b\.c should be a whole number, found 'x'"):
            deeper.integer("c")
        with pytest.raises(BadConfig, match=r"a\.b\.c should be an object"):
            deeper.inner("c")
        with pytest.raises(BadConfig, match="the top level is not an object"):
            ConfigFields([])

    def test_what_is_shown_of_a_value_is_short_and_printable(self) -> None:
        for value, shown in (("é\x1b[31m", r"'\xe9\x1b[31m'"), ("x" * 1000, "..."), (10**5000, "thousands")):
            with pytest.raises(BadConfig) as caught:
                ConfigFields({"a": value}).flag("a", True)
            assert shown in str(caught.value) and len(str(caught.value)) < 250
            assert str(caught.value).isprintable()

    def test_words_are_a_list_of_texts(self) -> None:
        assert ConfigFields({"a": ("x", "y")}).words("a") == ["x", "y"]
        for value in ("xy", ["x", 1], {"x": 1}):
            with pytest.raises(BadConfig, match="a should be a list of texts"):
                ConfigFields({"a": value}).words("a")

    def test_private_fields_are_ignored_and_others_are_not(self) -> None:
        ConfigFields({"_note": 1, "a": 2}).refuse_unknown({"a"})
        with pytest.raises(BadConfig, match=r"unknown field t\.b"):
            ConfigFields({"a": 2, "b": 3}, "t.").refuse_unknown({"a"})

    def test_special_tokens_lie_in_the_vocabulary(self) -> None:
        check_tokens(4, (0, 3, None))
        for token in (-1, 4, 10**5000):
            with pytest.raises(BadConfig, match="outside the vocabulary of 4"):
                check_tokens(4, (0, token))
