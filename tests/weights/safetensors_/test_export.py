"""Folders we write: transformers loads the same model from them, and so do we."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from canvaslm.errors import BadModelFile, UsageError
from canvaslm.model.diffusion_gemma.hf_names import place_of
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.resolve import INDEX
from canvaslm.weights.safetensors_.export import save_folder
from tests.tiny import hf_config, tiny_model


def random_model(**changes: Any) -> Any:
    model = tiny_model(**changes)
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            layer.layer_scalar.fill_(0.5 + i)
            layer.encoder_layer_scalar.fill_(0.25 + i)
    return model


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    theirs = b.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", [10**9, 60_000])
def test_transformers_and_we_load_it(tmp_path: Path, tied: bool, shard_size: int) -> None:
    model = random_model(tie_word_embeddings=tied)
    config = {**model.config.to_dict(), "vision_config": hf_config(model.config).to_dict()["vision_config"]}
    save_folder(model, config, tmp_path / "m", shard_size=shard_size)
    files = list((tmp_path / "m").glob("*.safetensors"))
    assert (len(files) == 1) == (shard_size == 10**9)
    assert_same(model, load_model(tmp_path / "m").model)

    family: Any = transformers.DiffusionGemmaForBlockDiffusion
    theirs, report = family.from_pretrained(tmp_path / "m", output_loading_info=True)
    missing = [name for name in report["missing_keys"] if place_of(name).role != "vision"]
    assert not missing
    assert not report["unexpected_keys"]
    state, ours = theirs.state_dict(), model.state_dict()
    for name, tensor in state.items():
        place = place_of(name)
        if place.role != "vision" and place.name in ours:
            assert torch.equal(tensor, ours[place.name]), name


def test_dtype_generation_and_files(tmp_path: Path) -> None:
    model = random_model()
    (tmp_path / "card").write_text("a card")
    out = save_folder(
        model,
        model.config,
        tmp_path / "m",
        dtype=torch.bfloat16,
        generation={"t_min": 0.3},
        files={"tokenizer.json": b"{}", "README.md": tmp_path / "card"},
        extra={"model.encoder.embed_vision.embedding_projection.weight": torch.ones(2)},
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert (out / "README.md").read_text() == "a card"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = load_model(out, dtype="bfloat16")
    assert loaded.generation == {"t_min": 0.3}
    assert loaded.notes[0].startswith("vision tower skipped (1 tensors")
    assert_same(model.bfloat16(), loaded.model)


def test_the_index_says_where_everything_is(tmp_path: Path) -> None:
    model = random_model()
    save_folder(model, model.config, tmp_path / "m", shard_size=60_000)
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert set(index["weight_map"].values()) == {p.name for p in (tmp_path / "m").glob("*.safetensors")}


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    model = random_model()
    out = save_folder(model, model.config, tmp_path / "m", shard_size=60_000)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        save_folder(model, model.config, out)
    save_folder(model, model.config, out, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "mine.txt", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert_same(model, load_model(out).model)


def test_a_crash_leaves_nothing(tmp_path: Path) -> None:
    model = random_model()
    for name in ("../evil", "/etc/evil", "a/b"):
        with pytest.raises(BadModelFile, match="not a plain file name"):
            save_folder(model, model.config, tmp_path / "m", files={name: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_other_weights_is_not_exported(tmp_path: Path) -> None:
    model = random_model()
    model.register_buffer("layers.0.encoder_layer_scalar_".replace(".", "_"), torch.ones(1))
    save_folder(model, model.config, tmp_path / "m")  # a stray weight is written under its name ...
    with pytest.raises(BadModelFile, match="left over"):
        load_model(tmp_path / "m")  # ... and found when it is read
