"""Synthetic checkpoints: true layout, sane activations, repeatable."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from canvaslm.errors import UsageError
from canvaslm.model.context import PlainContext
from canvaslm.model.diffusion_gemma import DiffusionGemmaConfig
from canvaslm.ops.formats.quant_tensor import FORMATS, dequantise
from canvaslm.weights.gguf.export import export_folder
from canvaslm.weights.gguf.fields import read_gguf_config
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.synth import plan_synth, random_blocks, write_synth
from tests.tiny import tiny_config

TINY = tiny_config(vocab_size=1024, hidden_size=256, eos_token_ids=(1, 106))


def test_the_full_size_has_the_published_layout() -> None:
    plan = plan_synth("26b", "Q4_K_M")
    assert len(plan.tensors) == 692
    assert round(plan.size / 1e9, 1) == 16.8
    assert round(plan_synth("small", "Q4_K_M").size / 1e6) == 233


@pytest.mark.parametrize("format", ["BF16", "F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_0"])
def test_blocks_have_the_deviation_asked_for(format: str) -> None:
    count = 1 << 19 if FORMATS[format].block == 1 else 1 << 13
    blocks = random_blocks(format, count, 0.02, np.random.default_rng(0))
    values = dequantise(format, torch.from_numpy(blocks), (count, FORMATS[format].block))
    assert float(values.std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(values.mean())) < 0.0002


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"])
def test_a_tiny_one_loads_and_runs(kind: str, tmp_path: Path) -> None:
    path = write_synth(plan_synth(TINY, kind), tmp_path / "m.gguf")
    loaded = load_model(path, dtype="float32")
    assert loaded.config == TINY
    context = PlainContext(TINY)
    with torch.no_grad():
        loaded.model.encode(torch.arange(20)[None], torch.arange(20)[None], context)
        hidden = loaded.model.denoise(torch.arange(8)[None], torch.arange(20, 28)[None], context)
        logits = loaded.model.logits(hidden)
    assert torch.isfinite(logits).all()
    assert 0.3 < float(logits.std()) < 3


def test_every_size_comes_back(tmp_path: Path) -> None:
    """No field of DiffusionGemmaConfig is lost in the metadata: each of these differs from its default."""
    config = tiny_config(
        vocab_size=640,
        num_layers=3,
        layer_types=("full_attention", "sliding_attention", "full_attention"),
        rms_norm_eps=1e-5,
        softcap=20.0,
        rope_theta=5000.0,
        global_rope_theta=2e6,
        partial_rotary_factor=0.5,
        max_position_embeddings=777,
        tie_word_embeddings=False,
        eos_token_ids=(1, 106),
    )
    path = write_synth(plan_synth(config, "F16"), tmp_path / "m.gguf")
    with GGUFFile(path) as file:
        assert read_gguf_config(file) == config


def test_same_seed_same_bytes_and_experts_differ(tmp_path: Path) -> None:
    plan = plan_synth(TINY, "Q4_K_M")
    first = write_synth(plan, tmp_path / "a.gguf", seed=1).read_bytes()
    assert first == write_synth(plan, tmp_path / "b.gguf", seed=1).read_bytes()
    assert first != write_synth(plan, tmp_path / "c.gguf", seed=2).read_bytes()
    with GGUFFile(tmp_path / "a.gguf") as file:
        experts = file.tensor("blk.0.ffn_gate_up_exps.weight")
        assert len({bytes(experts[i].raw.numpy()) for i in range(4)}) == 4


def test_its_vocabulary_spells_anything(tmp_path: Path) -> None:
    path = write_synth(plan_synth(TINY, "Q8_0"), tmp_path / "m.gguf")
    tokenizer = Tokenizer.from_file(str(export_folder(path, tmp_path / "back") / "tokenizer.json"))
    for text in ("kabe dofu", "Größe 漢字 🎉\n\t", "x = {1: 2}"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert tokenizer.token_to_id("<turn|>") == 106
    assert len(tokenizer.encode(" kabe", add_special_tokens=False).ids) < 3


def test_a_borrowed_vocabulary() -> None:
    folder = os.environ.get("CANVASLM_FIXTURES")
    if folder is None:
        pytest.skip("CANVASLM_FIXTURES is not set: no Gemma vocabulary")
    path = Path(folder) / "gemma4-vocab.gguf"
    plan = plan_synth("small", "Q4_K_M", tokenizer=path, layers=1)
    assert isinstance(plan.config, DiffusionGemmaConfig)
    assert plan.config.layer_types == ("full_attention",)
    assert len(plan.metadata["tokenizer.ggml.merges"]) > 5_000_000
    with pytest.raises(UsageError, match="has 262144 tokens, the shape has 1024"):
        plan_synth(TINY, "Q4_K_M", tokenizer=path)


def test_unknown_words_are_named() -> None:
    with pytest.raises(UsageError, match="shape '7b' is not known; known: 26b, small"):
        plan_synth("7b", "Q4_K_M")
    with pytest.raises(UsageError, match="type 'Q3' is not written"):
        plan_synth(TINY, "Q3")
    with pytest.raises(UsageError, match="layers = 0 is out of range"):
        plan_synth("small", "Q4_K_M", layers=0)
