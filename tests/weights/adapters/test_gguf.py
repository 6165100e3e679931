"""Adapters in GGUF files: there and back, as llama.cpp lays them out, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from canvaslm.errors import BadModelFile, NotFound, UsageError
from canvaslm.model.adapters import Adapter, WeightDelta
from canvaslm.weights.adapters.gguf import read_gguf_adapter, write_gguf_adapter
from canvaslm.weights.adapters.peft_write import write_peft
from canvaslm.weights.adapters.read import read_adapter
from canvaslm.weights.adapters.sides import both_sides
from tests.tiny import tiny_config

from .made import CONFIG, MODULES, delta, deltas, same

SCALES = {
    f"layers.{layer}.router.per_expert_scale": torch.tensor([0.5, 1.0, 1.5, 3.0]) + layer for layer in (0, 1)
}
EVERYTHING = ("self_attn", "mlp", "router", "experts", "self_conditioning")
# The tiny model's gate_up, which some files hold in halves.
GATE, UP = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"


def test_there_and_back(tmp_path: Path) -> None:
    adapter = both_sides(deltas(*EVERYTHING), MODULES)
    path = write_gguf_adapter(adapter, tmp_path / "a.gguf", CONFIG, SCALES)
    again = read_adapter(path, CONFIG, SCALES)
    assert same(again.denoise, adapter.denoise, 1e-6)
    assert same(again.encode, adapter.encode, 1e-6)
    assert set(again.denoise) - set(again.encode) == {n for n in again.denoise if "self_cond" in n}
    assert {change.scale for change in again.denoise.values()} == {1.5}


def test_unequal_ranks_and_scales_come_back(tmp_path: Path) -> None:
    scales = [1.5, 1.5, 0.25, 7.0, 1 / 3, 0.0]
    modules = [
        name for name in MODULES.shapes if name.endswith(("q_proj", "mlp.up_proj", "experts.down_proj"))
    ]
    changes = {
        name: delta(name, rank, scale)
        for name, rank, scale in zip(modules, [2, 2, 4, 1, 3, 2], scales, strict=True)
    }  # fmt: skip
    path = write_gguf_adapter(both_sides(changes, MODULES), tmp_path / "a.gguf", CONFIG, SCALES)
    assert same(read_adapter(path, CONFIG, SCALES).denoise, changes, 1e-5)


def test_the_file_is_what_llama_cpp_reads(tmp_path: Path) -> None:
    changes = deltas("layers.0.self_attn.q_proj", "layers.0.experts.down_proj")
    path = write_gguf_adapter(both_sides(changes, MODULES), tmp_path / "a.gguf", CONFIG, SCALES)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.type": "adapter",
        "general.architecture": "diffusion-gemma",
        "general.name": "a",
        "adapter.type": "lora",
        "adapter.lora.alpha": 3.0,
    }
    tensors = {t.name: t for t in reader.tensors}
    # ggml's order of dimensions: the input first.
    assert {name: list(map(int, t.shape)) for name, t in tensors.items()} == {
        "blk.0.attn_q.weight.lora_a": [64, 2],
        "blk.0.attn_q.weight.lora_b": [2, 64],
        "blk.0.ffn_down_exps.weight.lora_a": [32, 2, 4],
        "blk.0.ffn_down_exps.weight.lora_b": [2, 64, 4],
    }
    # llama.cpp: scale_e * (W_e x) + alpha / r * B_e A_e x, and ours is scale_e * (W_e + change_e) x.
    a, b = (torch.from_numpy(tensors[f"blk.0.ffn_down_exps.weight.lora_{half}"].data.copy()) for half in "ab")
    ours = changes["layers.0.experts.down_proj"].matrix()
    scale = SCALES["layers.0.router.per_expert_scale"][:, None, None]
    assert torch.allclose(3.0 / 2 * (b @ a), scale * ours, atol=1e-6)


def by_hand(path: Path, tensors: dict[str, np.ndarray[Any, Any]], alpha: float = 4.0, **changes: str) -> Path:
    """A file that the gguf package writes."""
    about = {"kind": "adapter", "form": "lora", "architecture": "diffusion-gemma", **changes}
    writer = gguf.GGUFWriter(path, about["architecture"])
    writer.add_string("general.type", about["kind"])
    writer.add_string("adapter.type", about["form"])
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(base: str, a: tuple[int, ...], b: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    made = np.random.default_rng(seed)
    return {
        f"{base}.lora_a": made.standard_normal(a).astype(np.float32),
        f"{base}.lora_b": made.standard_normal(b).astype(np.float32),
    }


@pytest.mark.parametrize(("alpha", "scale"), [(4.0, 2.0), (0.0, 1.0)])
def test_alpha_and_its_absence(alpha: float, scale: float, tmp_path: Path) -> None:
    tensors = pair("blk.1.attn_k.weight", (2, 64), (32, 2))
    found = read_gguf_adapter(by_hand(tmp_path / "a.gguf", tensors, alpha), CONFIG)
    assert found.denoise["layers.1.self_attn.k_proj"].scale == scale


def test_half_precision_is_read(tmp_path: Path) -> None:
    tensors = {
        name: t.astype(np.float16) for name, t in pair("blk.1.attn_k.weight", (2, 64), (32, 2)).items()
    }
    found = read_gguf_adapter(by_hand(tmp_path / "a.gguf", tensors), CONFIG)
    a = torch.from_numpy(tensors["blk.1.attn_k.weight.lora_a"]).float()
    assert torch.equal(found.encode["layers.1.self_attn.k_proj"].a, a)


@pytest.mark.parametrize("halves", [(GATE,), (UP,), (GATE, UP)])
def test_gate_and_up_apart(halves: tuple[str, ...], tmp_path: Path) -> None:
    """Of different ranks, and either may be missing."""
    ranks = {GATE: 2, UP: 3}
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    expected = torch.zeros(4, 64, 64)
    for name in halves:
        made = pair(name, (4, ranks[name], 64), (4, 32, ranks[name]), seed=ranks[name])
        tensors |= made
        a, b = (torch.from_numpy(made[f"{name}.lora_{half}"]) for half in "ab")
        expected[:, 32 * (name == UP) :][:, :32] = 4.0 / ranks[name] * (b @ a)
    found = read_gguf_adapter(by_hand(tmp_path / "a.gguf", tensors), CONFIG)
    assert torch.allclose(found.denoise["layers.0.experts.gate_up_proj"].matrix(), expected, atol=1e-5)


Q = "blk.0.attn_q.weight"
GOOD = pair(Q, (2, 64), (64, 2))
BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one half": ({f"{Q}.lora_a": GOOD[f"{Q}.lora_a"]}, {}, f"'{Q}.lora_a': there is no lora_b to it"),
    "a stranger": (GOOD | {"x": np.zeros(4, np.float32)}, {}, "'x': left over"),
    "another width": (pair(Q, (2, 60), (64, 2)), {}, "lora_a [2, 60] and lora_b [64, 2] do not fit"),
    "ranks apart": (pair(Q, (2, 64), (64, 3)), {}, "do not fit a matrix [64, 64]"),
    "a layer too many": (pair("blk.9.attn_q.weight", (2, 64), (64, 2)), {}, "adapts no such matrix"),
    "the embedding": (pair("token_embd.weight", (2, 64), (64, 2)), {}, "adapts no such matrix"),
    "a norm": (pair("blk.0.attn_norm.weight", (2, 64), (64, 2)), {}, "adapts no such matrix"),
    "no number": ({**GOOD, f"{Q}.lora_a": GOOD[f"{Q}.lora_a"] * np.nan}, {}, "lora_a': holds NaN"),
    "whole and in halves": (
        pair(GATE, (4, 2, 64), (4, 32, 2)) | pair("blk.0.ffn_gate_up_exps.weight", (4, 2, 64), (4, 64, 2)),
        {},
        "a second adapter of the same matrix",
    ),
    "a model": (GOOD, {"kind": "model"}, "it is a model, not an adapter"),
    "another kind": (GOOD, {"form": "ia3"}, "adapter.type 'ia3' is not supported"),
    "another architecture": (GOOD, {"architecture": "llama"}, "is for models of architecture 'llama'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_each_tensor_is_used_or_named(case: str, tmp_path: Path) -> None:
    tensors, changes, says = BROKEN[case]
    path = by_hand(tmp_path / "a.gguf", tensors, **changes)
    with pytest.raises(BadModelFile) as caught:
        read_adapter(path, CONFIG)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_down_projections_need_the_base(tmp_path: Path) -> None:
    adapter = both_sides(deltas("experts.down"), MODULES)
    with pytest.raises(UsageError, match="name the base model"):
        write_gguf_adapter(adapter, tmp_path / "a.gguf", CONFIG)
    assert not list(tmp_path.iterdir())
    path = write_gguf_adapter(adapter, tmp_path / "a.gguf", CONFIG, SCALES)
    with pytest.raises(UsageError, match="name the base model"):
        read_adapter(path, CONFIG)
    zeros = {name: torch.zeros(4) for name in SCALES}
    with pytest.raises(BadModelFile, match="scales an expert by 0"):
        read_adapter(path, CONFIG, zeros)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adapter(deltas("q_proj"), deltas("q_proj", seed=1)),
        lambda: Adapter({}, deltas("q_proj")),
        lambda: Adapter(deltas("q_proj"), deltas("q_proj", "k_proj")),
        lambda: Adapter(deltas("q_proj"), deltas("q_proj", scale=2.0)),
    ],
)
def test_only_equal_sides_fit(make: Callable[[], Adapter], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encodes and denoises with different changes"):
        write_gguf_adapter(make(), tmp_path / "a.gguf", CONFIG)


def test_another_models_adapter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit this model"):
        write_gguf_adapter(
            both_sides(deltas("q_proj"), MODULES), tmp_path / "a.gguf", tiny_config(hidden_size=32)
        )


def test_what_an_adapter_may_lie_in(tmp_path: Path) -> None:
    adapter = both_sides(deltas("q_proj"), MODULES)
    (tmp_path / "g").mkdir()
    write_gguf_adapter(adapter, tmp_path / "g" / "a.gguf", CONFIG)
    folder = write_peft(adapter, tmp_path / "p", CONFIG)
    for path in (
        tmp_path / "g",
        folder,
        folder / "adapter_config.json",
        folder / "adapter_model.safetensors",
    ):
        assert same(read_adapter(path, CONFIG).denoise, adapter.denoise)
    (tmp_path / "x.bin").write_bytes(b"x")
    (tmp_path / "x.txt").write_bytes(b"x")
    with pytest.raises(BadModelFile, match="is a pickle"):
        read_adapter(tmp_path / "x.bin", CONFIG)
    with pytest.raises(BadModelFile, match="is no adapter"):
        read_adapter(tmp_path / "x.txt", CONFIG)
    with pytest.raises(NotFound, match="there is no such file or folder"):
        read_adapter(tmp_path / "nothing", CONFIG)


def test_a_scale_of_zero_is_not_one(tmp_path: Path) -> None:
    """Alpha 0 means a scale of 1 in these files."""
    changes = {name: WeightDelta(d.a, d.b, 0.0) for name, d in deltas("q_proj").items()}
    path = write_gguf_adapter(both_sides(changes, MODULES), tmp_path / "a.gguf", CONFIG)
    assert not any(bool(d.matrix().any()) for d in read_adapter(path, CONFIG).denoise.values())
