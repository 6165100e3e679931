"""Broken, foreign and unsupported adapters: one error each, which names the file and what is wrong in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from canvaslm.errors import BadConfig, BadModelFile, NotFound, UsageError
from canvaslm.model.adapters import Adapter
from canvaslm.weights.adapters.peft import CONFIG as CONFIG_FILE
from canvaslm.weights.adapters.peft import TENSORS, read_peft
from canvaslm.weights.adapters.peft_write import write_peft
from canvaslm.weights.safetensors_.file import load_file, save_file
from tests.tiny import tiny_config

from .made import CONFIG, deltas

Tensors = dict[str, Tensor]

PREFIX = "base_model.model.model.decoder."
Q = f"{PREFIX}layers.0.self_attn.q_proj"
E = f"{PREFIX}layers.0.experts"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapter = Adapter({}, deltas("q_proj", "experts"))
    return write_peft(adapter, tmp_path / "adapter", CONFIG)


def settings(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(BadModelFile) as caught:
        read_peft(folder, CONFIG)
    return str(caught.value)


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora: DoRA is not supported; merge it"),
    "lora_bias": ({"lora_bias": True}, "lora_bias: "),
    "bias": ({"bias": "all"}, "bias = 'all'"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save: "),
    "token rows": ({"trainable_token_indices": [3]}, "trainable_token_indices: "),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens: aLoRA"),
    "another kind": ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only LORA"),
    "of the future": ({"use_more": True}, "'use_more': canvaslm does not know what it changes"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "changed the base's weights too"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha should be a number, found None"),
    "alpha of words": ({"lora_alpha": "16"}, "lora_alpha should be a number, found '16'"),
    "rsLoRA of words": ({"use_rslora": "yes"}, "use_rslora should be true or false"),
    "patterns in a list": ({"alpha_pattern": [1]}, "alpha_pattern should be an object"),
    "a pattern that is none": ({"alpha_pattern": {"q_proj(": 1}}, "'q_proj(' is no regular expression"),
    "a pattern without end": ({"alpha_pattern": {"(a+)+b": 1}}, "too complicated to be tried safely"),
    "a pattern's value": ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern['q_proj'] should be a number"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(case: str, folder: Path) -> None:
    changes, says = UNSUPPORTED[case]
    settings(folder, **changes)
    with pytest.raises(BadConfig) as caught:
        read_peft(folder, CONFIG)
    assert str(caught.value).startswith(f"{folder / CONFIG_FILE}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "inert",
    [
        {"use_dora": False, "modules_to_save": [], "eva_config": None, "loftq_config": {}},
        {"runtime_config": {"ephemeral_gpu_offload": False}, "init_lora_weights": "gaussian"},
        {"target_modules": ["nothing", "of", "this"], "auto_mapping": {"unsloth_fixed": True}, "r": 99},
    ],
)
def test_what_changes_no_computation_is_read_over(inert: dict[str, Any], folder: Path) -> None:
    settings(folder, **inert)
    assert len(read_peft(folder, CONFIG).denoise) == 6


def drop(*names: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.ones(shape).to(dtype)})


def move(old: str, new: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(old + ".lora_")]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def poison(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[3] = float("nan")

    return change


BROKEN: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "one half": (drop(f"{Q}.lora_B.weight"), f"'{Q}.lora_A.weight': there is no lora_B to it"),
    "ranks apart": (put(f"{Q}.lora_B.weight", 64, 3), "lora_A is of rank 2, lora_B of 3"),
    "another width": (put(f"{Q}.lora_A.weight", 2, 65), "changes a matrix [64, 65], the model's is [64, 64]"),
    "a layer too many": (move(Q, Q.replace("layers.0", "layers.7")), "the model has no such matrix"),
    "no such module": (move(Q, Q.replace("q_proj", "z_proj")), "the model has no such matrix"),
    "values where there are none": (
        move(Q, f"{PREFIX}layers.1.self_attn.v_proj"),
        "layers.1.self_attn.v_proj': the model has no such matrix",
    ),
    "the embedding": (
        put(f"{PREFIX}embed_tokens.lora_embedding_A", 2, 64),
        "an adapter of an embedding, which is not supported",
    ),
    "the head": (move(Q, "base_model.model.lm_head"), "'lm_head': adapters of the head are not supported"),
    "the vision tower": (
        move(Q, "base_model.model.model.encoder.vision_tower.encoder.layers.0.self_attn.q_proj.linear"),
        "is of the vision tower, which canvaslm does not run",
    ),
    "DoRA's vector": (put(f"{Q}.lora_magnitude_vector", 64), "lora_magnitude_vector': DoRA"),
    "a stranger": (put("weight", 4), "'weight': left over, it is no part of a LoRA"),
    "whole numbers": (
        put(f"{Q}.lora_A.weight", 2, 64, dtype=torch.int32),
        "I32 [2, 64], expected a matrix of F64, F32, BF16, F16",
    ),
    "three dimensions": (put(f"{Q}.lora_A.weight", 2, 8, 8), "F32 [2, 8, 8], expected a matrix"),
    "not a number": (poison(f"{Q}.lora_A.weight"), "element 3"),
    "the inner experts alone": (
        drop(f"{E}.lora_A.weight", f"{E}.lora_B.weight"),
        "the tensors of experts.down_proj are missing",
    ),
    "experts of another count": (
        put(f"{E}.base_layer.lora_A.weight", 8, 60),
        "fit neither layout of 4 experts",
    ),
    "experts in two layouts": (
        lambda t: t.update(
            {f"{E}.lora_A.weight": torch.ones(8, 64), f"{E}.lora_B.weight": torch.ones(32, 8)}
        ),
        "some experts' tensors are in the layout of PEFT up to 0.18, some in the later",
    ),
    "with and without a tree": (
        lambda t: t.update({n.replace("model.decoder.", "model."): x for n, x in list(t.items()) if Q in n}),
        "a second adapter of the same matrix",
    ),
    "nothing": (lambda t: t.clear(), "it holds no adapter tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_each_tensor_is_used_or_named(case: str, folder: Path) -> None:
    change, says = BROKEN[case]
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(folder / TENSORS, tensors)
    said = refusal(folder)
    assert said.startswith(f"{folder / TENSORS}: ")
    assert says in said
    assert len(said.splitlines()) == 2


def test_one_error_names_all(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    for case in ("one half", "DoRA's vector", "a stranger"):
        BROKEN[case][0](tensors)
    save_file(folder / TENSORS, tensors)
    assert len(refusal(folder).splitlines()) == 4


def test_another_models_adapter(folder: Path) -> None:
    with pytest.raises(BadModelFile, match="does not fit this model") as caught:
        read_peft(folder, tiny_config(hidden_size=32, num_experts=8))
    assert str(caught.value).count("layers.") == 6


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSORS])
def test_a_file_that_is_not_there(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(NotFound, match=f"there is no {name} in it"):
        read_peft(folder, CONFIG)


def test_pickles_are_never_loaded(folder: Path) -> None:
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    assert "adapter_model.bin: is a pickle" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_configuration_that_is_none(content: bytes, folder: Path) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    assert str(folder / CONFIG_FILE) in refusal(folder)


def test_tensors_cut_short(folder: Path) -> None:
    whole = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(whole[:-8])
    assert str(folder / TENSORS) in refusal(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / TENSORS).rename(tmp_path / "elsewhere.safetensors")
    (folder / TENSORS).symlink_to(tmp_path / "elsewhere.safetensors")
    assert "leads out of the model's folder" in refusal(folder)


def test_writing_says_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    adapter = Adapter({}, deltas("q_proj"))
    with pytest.raises(UsageError, match="does not fit this model"):
        write_peft(adapter, tmp_path / "out", tiny_config(hidden_size=32))
    with pytest.raises(UsageError, match="is there already"):
        write_peft(adapter, folder, CONFIG)
    write_peft(adapter, folder, CONFIG, force=True)
    assert set(read_peft(folder, CONFIG).denoise) == set(adapter.denoise)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a model"):
        write_peft(adapter, folder, CONFIG, force=True)
