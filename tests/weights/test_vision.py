"""Vision towers out of safetensors and mmproj files, and broken ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.errors import BadModelFile
from canvaslm.model.vision.config import VisionConfig
from canvaslm.model.vision.names import EMBEDDER, TOWER, from_hf, from_mmproj
from canvaslm.model.vision.tower import VisionTower
from canvaslm.weights.safetensors_.file import load_file, save_file
from canvaslm.weights.safetensors_.header import read_header
from canvaslm.weights.vision import load_mmproj_tower, load_safetensors_tower

TINY = Path(os.environ.get("CANVASLM_FIXTURES", "")) / "vision" / "tiny"
needs_files = pytest.mark.skipif(
    not (os.environ.get("CANVASLM_FIXTURES") and TINY.is_dir()),
    reason="CANVASLM_FIXTURES names no folder with a vision tower",
)
FIELDS: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 12, "patch_size": 4, "position_embedding_size": 32,
}  # fmt: skip


def saved(folder: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """A checkpoint with a tower and a tensor of the text model; `change` replaces or removes tensors."""
    tower = VisionTower(VisionConfig.from_dict(FIELDS), 32)
    tensors: dict[str, torch.Tensor] = {"model.decoder.norm.weight": torch.ones(32)}
    for name, value in tower.state_dict().items():
        prefix = EMBEDDER if name.startswith("embedding_projection") else TOWER
        middle = "encoder." if name.startswith("layers.") else ""
        tensors[f"{prefix}{middle}{name}"] = value
    tensors |= {name: value for name, value in change.items() if value is not None}
    for name in [name for name, value in change.items() if value is None]:
        del tensors[name]
    path = folder / "model.safetensors"
    save_file(path, tensors)
    return path


@needs_files
@torch.no_grad()
def test_both_kinds_of_files_hold_the_same_tower() -> None:
    config, want = json.loads((TINY / "config.json").read_text()), load_file(TINY / "expected.safetensors")
    header = read_header(TINY / "vision.safetensors")
    towers = [
        load_safetensors_tower([header], config["vision_config"], 32),
        load_mmproj_tower(TINY / "mmproj-tiny-f32.gguf", 32),
    ]
    for tower in towers:
        got = tower(want["0.patches"], 6, 12)
        assert float((got - want["0.projected"]).abs().max() / want["0.projected"].abs().max()) < 1e-5
    assert all(
        torch.equal(value, towers[1].state_dict()[name]) for name, value in towers[0].state_dict().items()
    )


@needs_files
def test_names_are_those_of_the_converter() -> None:
    for hf, mmproj in json.loads((TINY / "names.json").read_text()).items():
        assert from_hf(hf) == from_mmproj(mmproj) is not None
    assert from_hf("model.decoder.norm.weight") is None
    assert from_mmproj("v.blk.0.attn_sinks.weight") is None
    assert from_mmproj("v.blk.0.ln1.input_min") is None


@needs_files
def test_a_tower_of_another_model_is_refused() -> None:
    with pytest.raises(
        BadModelFile, match=r"mm.input_projection.weight: shape \[32, 24\], expected \[48, 24\]"
    ):
        load_mmproj_tower(TINY / "mmproj-tiny-f32.gguf", 48)


def test_a_language_model_is_no_tower(tmp_path: Path) -> None:
    from tests.tiny import tiny_model, write_tiny_gguf

    sizes = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256}
    path = write_tiny_gguf(tiny_model(1, **sizes), tmp_path / "m.gguf", "Q8_0")
    with pytest.raises(BadModelFile, match="no vision tower of this model"):
        load_mmproj_tower(path, 256)


def test_weights_come_from_beside_the_text_model(tmp_path: Path) -> None:
    tower = load_safetensors_tower([read_header(saved(tmp_path, {}))], FIELDS, 32, torch.bfloat16)
    assert tower.embedding_projection.weight.dtype == torch.bfloat16
    assert tower(torch.rand(9, 48), 3, 3).shape == (1, 32)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({f"{TOWER}encoder.layers.0.mlp.gate_proj.linear.weight": None}, "gate_proj.linear.weight: missing"),
        ({f"{TOWER}encoder.layers.7.input_layernorm.weight": torch.ones(24)}, "left over"),
        ({f"{EMBEDDER}embedding_projection.weight": torch.ones(32, 20)}, "shape [32, 20], expected [32, 24]"),
        ({f"{TOWER}encoder.layers.0.self_attn.q_norm.weight": torch.full((12,), torch.nan)}, "NaN"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, torch.Tensor | None], told: str
) -> None:
    with pytest.raises(BadModelFile) as caught:
        load_safetensors_tower([read_header(saved(tmp_path, change))], FIELDS, 32)
    assert told in str(caught.value)
