"""The vision tower against transformers' figures, and against itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from canvaslm.errors import BadConfig, UsageError
from canvaslm.model.vision.config import VisionConfig
from canvaslm.model.vision.tower import VisionTower, grid_positions

TINY = Path(os.environ.get("CANVASLM_FIXTURES", "")) / "vision" / "tiny"
needs_files = pytest.mark.skipif(
    not (os.environ.get("CANVASLM_FIXTURES") and TINY.is_dir()),
    reason="CANVASLM_FIXTURES names no folder with a vision tower",
)
PREFIXES = {"model.encoder.vision_tower.encoder.": "", "model.encoder.vision_tower.": "",
            "model.encoder.embed_vision.": ""}  # fmt: skip
SMALL = VisionConfig(
    hidden_size=24, intermediate_size=40, num_layers=2, num_heads=2, head_dim=12, patch=4, position_table=32
)


def ours(name: str) -> str:
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return name.removeprefix(prefix)


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    config = json.loads((TINY / "config.json").read_text())
    made = VisionTower(VisionConfig.from_dict(config["vision_config"]), config["text_config"]["hidden_size"])
    made.load_state_dict(
        {ours(name): value for name, value in load_file(TINY / "vision.safetensors").items()}
    )
    return made


@needs_files
@pytest.mark.parametrize(("which", "rows", "columns"), [(0, 6, 12), (1, 3, 12)])
@torch.no_grad()
def test_it_gives_what_transformers_gives(tower: VisionTower, which: int, rows: int, columns: int) -> None:
    want = load_file(TINY / "expected.safetensors")
    assert torch.equal(grid_positions(rows, columns), want[f"{which}.positions"])
    soft = tower.soft_tokens(want[f"{which}.patches"], rows, columns)
    for got, name in ((soft, "soft"), (tower(want[f"{which}.patches"], rows, columns), "projected")):
        wanted = want[f"{which}.{name}"]
        assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5


@needs_files
@torch.no_grad()
def test_bf16_has_the_bits_of_transformers() -> None:
    from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionModel

    fields: dict[str, Any] = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 12, "patch_size": 4, "position_embedding_size": 32,
        "standardize": True,
    }  # fmt: skip
    torch.manual_seed(0)
    theirs = Gemma4VisionModel._from_config(
        Gemma4VisionConfig(**fields), attn_implementation="sdpa", dtype=torch.bfloat16
    ).eval()
    mine = VisionTower(VisionConfig.from_dict(fields), 32, dtype=torch.bfloat16)
    state = {name.removeprefix("encoder."): value for name, value in theirs.state_dict().items()}
    state = {name: value for name, value in state.items() if "rotary" not in name}
    mine.load_state_dict({**mine.state_dict(), **state})
    patches = torch.rand(72, 48)
    soft = theirs(patches[None], grid_positions(6, 12)[None]).last_hidden_state
    assert torch.equal(mine.soft_tokens(patches, 6, 12), soft.reshape(-1, 24))


@torch.no_grad()
def test_each_soft_token_sees_the_whole_picture_and_its_place() -> None:
    torch.manual_seed(0)
    tower = VisionTower(SMALL, 32)
    tower.patch_embedder.position_embedding_table.normal_()
    patches = torch.rand(6 * 9, 48)
    soft = tower(patches, 6, 9)
    assert soft.shape == (6, 32)
    changed = patches.clone()
    changed[-1] = 0
    assert not torch.isclose(tower(changed, 6, 9), soft, atol=1e-7).all(-1).any()
    assert not torch.allclose(tower(patches, 9, 6), soft, atol=1e-3)


def test_a_grid_that_does_not_fit_is_refused() -> None:
    tower = VisionTower(SMALL, 32)
    for rows, columns in ((4, 6), (3, 33)):
        with pytest.raises(UsageError, match="each side should be a multiple of 3 and at most 32"):
            tower(torch.rand(rows * columns, 48), rows, columns)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("num_key_value_heads", 6, "num_key_value_heads should be 12"),
        ("hidden_activation", "relu", "hidden_activation should be gelu_pytorch_tanh"),
        ("attention_bias", True, "attention_bias should be false"),
        ("head_dim", 6, "head_dim should be a multiple of 4"),
        ("rope_parameters", {"rope_type": "yarn"}, "rope_type = 'yarn' is not supported"),
        ("newer", 1, "unknown field vision_config.newer"),
        ("hidden_size", "wide", "hidden_size should be a whole number"),
    ],
)
def test_a_config_that_means_something_else_is_refused(field: str, value: object, told: str) -> None:
    with pytest.raises(BadConfig) as caught:
        VisionConfig.from_dict({field: value})
    assert told in str(caught.value)
    assert VisionConfig.from_dict({}) == VisionConfig()
