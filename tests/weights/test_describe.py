"""Descriptions: counts are the model's, and nothing but headers is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import canvaslm
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.errors import BadConfig, BadModelFile
from canvaslm.model.diffusion_gemma import DiffusionGemmaConfig
from canvaslm.weights.describe import describe, format_of
from canvaslm.weights.description import Description, TokenizerSummary, count_parts
from canvaslm.weights.gguf.describe import _FILE_TYPES
from canvaslm.weights.gguf.quantize import FILE_TYPES, write_gguf
from canvaslm.weights.gguf.source import open_source
from canvaslm.weights.resolve import resolve
from tests.tiny import tiny_config, tiny_model
from tests.weights.gguf_files import one_tensor

# google/diffusiongemma-26B-A4B-it
LARGE = DiffusionGemmaConfig(
    vocab_size=262_144, hidden_size=2816, intermediate_size=2112, num_layers=30, num_heads=16, num_kv_heads=8,
    num_global_kv_heads=2, head_dim=256, global_head_dim=512,
    layer_types=tuple("full_attention" if i % 6 == 5 else "sliding_attention" for i in range(30)),
    sliding_window=1024,
    num_experts=128, top_k_experts=8, moe_intermediate_size=704, canvas_length=256, eos_token_ids=(1, 106),
)  # fmt: skip


def description(config: DiffusionGemmaConfig, **more: Any) -> Description:
    fields = {"files": (), "stored": {}, "tokenizer": None, "generation": {}, **more}
    return Description(source="x", kind="folder", config=config, parts=count_parts(config), **fields)


def test_the_released_model() -> None:
    large = description(LARGE)
    assert round(large.parameters / 1e9, 2) == 25.25
    assert round(large.parts["experts"] / 1e9, 2) == 22.84
    assert round(large.active_parameters / 1e9, 1) == 3.8
    # 25 sliding layers of 1024 tokens x 8 heads x 256, 5 full ones x 2 heads x 512,
    # keys and values, two bytes
    assert large.context_bytes(1024, 2) == 1024 * 2 * 2 * (25 * 8 * 256 + 5 * 2 * 512)
    assert large.context_bytes(4096, 2) - large.context_bytes(1024, 2) == 3072 * 2 * 2 * 5 * 2 * 512


def test_parts_add_up_to_the_model() -> None:
    for tied in (True, False):
        model = tiny_model(tie_word_embeddings=tied)
        assert sum(count_parts(model.config).values()) == sum(t.numel() for t in model.state_dict().values())


def test_a_checkpoint(tied: tuple[Path, Any]) -> None:
    found = describe(resolve(tied[0]))
    assert (found.kind, found.config) == ("folder", tiny_config(has_vision=True))
    assert found.files == (("model.safetensors", (tied[0] / "model.safetensors").stat().st_size),)
    assert found.stored == {"F32": 4 * (found.parameters + found.vision_parameters)}
    assert found.vision_parameters > 0
    assert found.tokenizer is None


def test_weights_are_not_read(tied: tuple[Path, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tied[0], tmp_path / "m"))
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    path.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))  # all NaN
    assert describe(resolve(folder)).parameters == describe(resolve(tied[0])).parameters


def test_a_checkpoint_that_does_not_fit_its_config(tied: tuple[Path, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tied[0], tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 97
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModelFile, match=r"config.json says"):
        describe(resolve(folder))


def tokenizer(**model: Any) -> str:
    added = [{"id": 3, "content": "<eos>", "special": True}, {"id": 0, "content": "a", "special": False}]
    return json.dumps({"model": {"type": "BPE", **model}, "added_tokens": added})


def test_tokenizers(tied: tuple[Path, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tied[0], tmp_path / "m"))
    (folder / "tokenizer.json").write_text(tokenizer(vocab={"a": 0, "b": 1, "c": 2}))
    assert describe(resolve(folder)).tokenizer == TokenizerSummary("BPE", 4, 1, None)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert describe(resolve(folder)).tokenizer == TokenizerSummary("BPE", 4, 1, "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text("x")
    assert describe(resolve(folder)).tokenizer == TokenizerSummary("BPE", 4, 1, "chat_template.jinja")
    for broken in (tokenizer(), "{}", "[]", '{"model": 3}'):
        (folder / "tokenizer.json").write_text(broken)
        with pytest.raises(BadConfig, match=r"tokenizer.json"):
            describe(resolve(folder))


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_K_M", "Q8_0", "BF16"])
def test_the_format_of_a_gguf_file_is_what_it_says(kind: str, tmp_path: Path) -> None:
    write_gguf(open_source(MODEL_FOLDER), tmp_path / "m.gguf", kind)
    assert format_of(resolve(tmp_path / "m.gguf")) == kind
    session = canvaslm.load(tmp_path / "m.gguf")
    assert session.format == kind
    assert set(session.origins.values()) == {"GGUF metadata", "default"}


def test_a_gguf_file_that_does_not_say_has_the_format_of_most_bytes(tmp_path: Path) -> None:
    assert format_of(resolve(one_tensor().write(tmp_path / "m.gguf"))) == "F32"


def test_the_format_of_safetensors_is_that_of_most_bytes(tied: tuple[Path, Any], tmp_path: Path) -> None:
    assert format_of(resolve(tied[0])) == "F32"
    session = canvaslm.load()
    assert session.format == "BF16"
    assert set(session.origins.values()) == {"generation_config.json", "default"}


def test_every_type_that_is_written_is_read_back_by_name() -> None:
    assert {rule.file_type: name for name, rule in FILE_TYPES.items()}.items() <= _FILE_TYPES.items()
