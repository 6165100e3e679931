"""config.json: whatever stands in it, a good configuration comes out or an error that names the field."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvaslm.cli.main import main
from canvaslm.errors import BadConfig
from canvaslm.model import ModelConfig
from canvaslm.model.diffusion_gemma import DiffusionGemmaConfig
from canvaslm.model.registry import read_config
from tests.tiny import tiny_config

Path_ = tuple[str, ...]


def good() -> dict[str, Any]:
    """A config.json with every field that is read, in both places where there are two."""
    data = tiny_config(eos_token_ids=(1, 5)).to_dict()
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    older = {"global_head_dim": 32, "num_global_key_value_heads": 1}
    return {**data, **ids, "vision_config": None, "text_config": {**older, **data["text_config"]}}


def paths(data: dict[str, Any], above: Path_ = ()) -> list[Path_]:
    """Where every field stands, objects and what is in them."""
    found = []
    for name, value in data.items():
        found.append((*above, name))
        if isinstance(value, dict):
            found += paths(value, (*above, name))
    return found


def changed(path: Path_, value: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(good()))
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.final_logit_softcapping", None),
        ("text_config.final_logit_softcapping", "30"),
        ("text_config.rms_norm_eps", None),
        ("text_config.rms_norm_eps", []),
        ("text_config.rms_norm_eps", float("nan")),
        ("text_config.rope_parameters.full_attention", 3),
        ("text_config.rope_parameters.sliding_attention", "default"),
        ("text_config.rope_parameters.full_attention.rope_theta", None),
        ("text_config.rope_parameters.full_attention.partial_rotary_factor", "0.25"),
        ("text_config.rope_parameters.sliding_attention.rope_theta", {}),
        ("text_config.layer_types", 2),
        ("text_config.layer_types", [["sliding_attention"], 1]),
        ("text_config.per_layer_config", [1]),
        ("text_config.per_layer_config.1", 7),
        ("text_config.per_layer_config.1.head_dim", "32"),
        ("text_config.pad_token_id", "0"),
        ("text_config.bos_token_id", 1.5),
        ("text_config.eos_token_id", 1.5),
        ("text_config.eos_token_id", [True]),
        ("tie_word_embeddings", "no"),
        ("text_config.num_hidden_layers", 10**9),
        ("text_config.vocab_size", 10**400),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(path: str, value: Any) -> None:
    with pytest.raises(BadConfig) as caught:
        read_config(changed(tuple(path.split(".")), value))
    assert path.rsplit(".", 1)[-1] in str(caught.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2, 3, 63, 64, 2**31, 2**63, 10**400, -(10**400)])
    | st.integers()
    | st.floats()
    | st.sampled_from([float("inf"), float("nan"), 1e308, 5e-324])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(paths(good())), VALUES)
def test_whatever_stands_in_a_field(path: Path_, value: Any) -> None:
    data = changed(path, None)
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    try:
        config = read_config(data)
    except BadConfig as error:
        said = str(error)
    else:
        said = "config.json"
        assert_good(config)
    assert "config.json" in said


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_whatever_the_whole_file_is(value: Any) -> None:
    with pytest.raises(BadConfig):
        read_config(value)


def assert_good(config: ModelConfig) -> None:
    """Every field has its type, and the configuration reads back as itself."""
    assert isinstance(config, DiffusionGemmaConfig)
    kinds = {"int": int, "float": float, "bool": bool}
    for field in fields(config):
        value = getattr(config, field.name)
        if str(field.type) in kinds:
            assert type(value) is kinds[str(field.type)], field.name
    assert len(config.layer_types) == config.num_layers
    assert all(type(token) is int for token in config.eos_token_ids)
    assert config.bos_token_id is None or type(config.bos_token_id) is int
    again = read_config(config.to_dict() | {"vision_config": {} if config.has_vision else None})
    assert again == config


def test_the_command_line_says_so_with_exit_code_6(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = changed(("text_config", "final_logit_softcapping"), None)
    (tmp_path / "config.json").write_text(json.dumps(data))
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert main(["show", str(tmp_path)]) == 6
    assert "final_logit_softcapping" in capsys.readouterr().err
