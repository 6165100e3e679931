"""The sizes of a DiffusionGemma model in a GGUF file's metadata, read and written. Torch-free.

Keys: llama.cpp's pull request 24423. A key that would change the computation in a way canvaslm does not
follow is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import BadModelFile
from ..config import ModelConfig
from ..names import Metadata, Stored
from .config import FULL, SLIDING, DiffusionGemmaConfig
from .gguf_names import ROPE_FREQS

ARCHITECTURES = ("diffusion-gemma", "diffusion_gemma")
MAX_LAYERS = 4096


def read_config(file: Metadata, ids: Mapping[str, int], stops: tuple[int, ...]) -> ModelConfig:
    """The model's sizes. Raises BadModelFile naming the key that is missing, wrong or not supported."""
    a = str(file.metadata["general.architecture"])
    _refuse_unsupported(file, a)
    sliding = _sliding_pattern(file, a)
    kv = file.per_layer(f"{a}.attention.head_count_kv", len(sliding))
    kv_heads, full_kv = _kind_value(file, kv, sliding, True), _kind_value(file, kv, sliding, False)
    full_dim = _head_dim(file, a, "")
    return DiffusionGemmaConfig(
        vocab_size=file.info("token_embd.weight").shape[0],
        hidden_size=file.integer(f"{a}.embedding_length"),
        intermediate_size=file.integer(f"{a}.feed_forward_length"),
        num_layers=len(sliding),
        num_heads=file.integer(f"{a}.attention.head_count"),
        num_kv_heads=kv_heads,
        num_global_kv_heads=full_kv,
        head_dim=_head_dim(file, a, "_swa"),
        global_head_dim=full_dim,
        layer_types=tuple(SLIDING if flag else FULL for flag in sliding),
        sliding_window=file.integer(f"{a}.attention.sliding_window"),
        num_experts=file.integer(f"{a}.expert_count"),
        top_k_experts=file.integer(f"{a}.expert_used_count"),
        moe_intermediate_size=file.integer(f"{a}.expert_feed_forward_length"),
        canvas_length=file.integer("diffusion.canvas_length"),
        rms_norm_eps=_decimal(file.number(f"{a}.attention.layer_norm_rms_epsilon", 1e-6)),
        softcap=_decimal(file.number(f"{a}.final_logit_softcapping", 30.0)),
        rope_theta=_decimal(file.number(f"{a}.rope.freq_base_swa", 10_000.0)),
        global_rope_theta=_decimal(file.number(f"{a}.rope.freq_base", 1_000_000.0)),
        partial_rotary_factor=_rotary_factor(file, full_dim),
        max_position_embeddings=file.integer(f"{a}.context_length"),
        tie_word_embeddings="output.weight" not in file.tensors,
        pad_token_id=ids.get("padding", 0),
        bos_token_id=ids.get("bos"),
        eos_token_ids=stops,
    )


def config_metadata(config: ModelConfig) -> dict[str, Stored]:
    """The model's sizes under llama.cpp's keys."""
    assert isinstance(config, DiffusionGemmaConfig)
    a = ARCHITECTURES[0]
    sliding = [config.is_sliding(i) for i in range(config.num_layers)]
    return {
        f"{a}.block_count": ("u32", config.num_layers),
        f"{a}.context_length": ("u32", config.max_position_embeddings),
        f"{a}.embedding_length": ("u32", config.hidden_size),
        f"{a}.feed_forward_length": ("u32", config.intermediate_size),
        f"{a}.expert_count": ("u32", config.num_experts),
        f"{a}.expert_used_count": ("u32", config.top_k_experts),
        f"{a}.expert_feed_forward_length": ("u32", config.moe_intermediate_size),
        f"{a}.attention.head_count": ("u32", config.num_heads),
        f"{a}.attention.head_count_kv": ("i32s", [config.kv_heads_of(i) for i in range(config.num_layers)]),
        f"{a}.attention.key_length": ("u32", config.global_head_dim),
        f"{a}.attention.value_length": ("u32", config.global_head_dim),
        f"{a}.attention.key_length_swa": ("u32", config.head_dim),
        f"{a}.attention.value_length_swa": ("u32", config.head_dim),
        f"{a}.attention.sliding_window": ("u32", config.sliding_window),
        f"{a}.attention.sliding_window_pattern": ("bools", sliding),
        f"{a}.attention.layer_norm_rms_epsilon": ("f32", config.rms_norm_eps),
        f"{a}.attention.causal": ("flag", False),
        f"{a}.attention.shared_kv_layers": ("u32", 0),
        f"{a}.embedding_length_per_layer_input": ("u32", 0),
        f"{a}.rope.freq_base": ("f32", config.global_rope_theta),
        f"{a}.rope.freq_base_swa": ("f32", config.rope_theta),
        f"{a}.rope.dimension_count": ("u32", config.global_head_dim),
        f"{a}.rope.dimension_count_swa": ("u32", config.head_dim),
        f"{a}.final_logit_softcapping": ("f32", config.softcap),
        "diffusion.canvas_length": ("u32", config.canvas_length),
    }


def tables(config: ModelConfig) -> dict[str, list[float]]:
    """Dividing factors of the full layers' rotary frequencies [global_head_dim / 2]: 1, or 1e30 for
    "none"."""
    assert isinstance(config, DiffusionGemmaConfig)
    pairs = config.global_head_dim // 2
    turning = int(config.partial_rotary_factor * pairs)
    return {ROPE_FREQS: [1.0] * turning + [1e30] * (pairs - turning)}


def _refuse_unsupported(file: Metadata, a: str) -> None:
    for key, neutral in (
        (f"{a}.attention.shared_kv_layers", 0),
        (f"{a}.embedding_length_per_layer_input", 0),
        (f"{a}.attention.causal", False),
    ):
        value = file.metadata.get(key, neutral)
        if value != neutral:
            raise BadModelFile(
                f"{file.path}: key {key!r} = {_shown(value)} is not supported (only {neutral})"
            )


def _sliding_pattern(file: Metadata, a: str) -> list[bool]:
    layers = file.integer(f"{a}.block_count")
    if not 1 <= layers <= MAX_LAYERS:
        raise BadModelFile(
            f"{file.path}: key '{a}.block_count' = {layers} is out of range (1 .. {MAX_LAYERS})"
        )
    key = f"{a}.attention.sliding_window_pattern"
    if key not in file.metadata:
        raise BadModelFile(f"{file.path}: key {key!r} is missing")
    return [bool(flag) for flag in file.per_layer(key, layers)]


def _kind_value(file: Metadata, values: list[Any], sliding: list[bool], kind: bool) -> int:
    """The one value that all layers of a kind share; that of the other kind when there are none of it."""
    found = {value for value, flag in zip(values, sliding, strict=True) if flag is kind} or set(values)
    if len(found) != 1 or not isinstance(next(iter(found)), int):
        raise BadModelFile(
            f"{file.path}: attention.head_count_kv differs among layers of one kind: "
            f"{_shown(sorted(found, key=str))}"
        )
    return int(next(iter(found)))


def _head_dim(file: Metadata, a: str, suffix: str) -> int:
    key, value = f"{a}.attention.key_length{suffix}", f"{a}.attention.value_length{suffix}"
    size = file.integer(key)
    if file.integer(value, size) != size:
        raise BadModelFile(f"{file.path}: keys {key!r} and {value!r} differ; canvaslm needs them equal")
    if file.integer(f"{a}.rope.dimension_count{suffix}", size) != size:
        raise BadModelFile(f"{file.path}: key '{a}.rope.dimension_count{suffix}' must equal {key!r} ({size})")
    return size


def _rotary_factor(file: Metadata, full_dim: int) -> float:
    """The share of rotating pairs in full layers, from the ones and infinities of `rope_freqs.weight`."""
    if ROPE_FREQS not in file.tensors:
        return 0.25
    info = file.info(ROPE_FREQS)
    if info.format != "F32" or info.shape != (full_dim // 2,):
        raise BadModelFile(f"{file.path}: {ROPE_FREQS} should be {full_dim // 2} F32 values")
    factors = np.frombuffer(file.raw_tensor(ROPE_FREQS), "<f4")
    turning = int((factors == 1).sum())
    if not (factors[:turning] == 1).all() or not (factors[turning:] >= 1e20).all() or turning == 0:
        raise BadModelFile(
            f"{file.path}: {ROPE_FREQS} is not ones followed by 1e30; "
            "other scalings of the rotary embedding are not supported"
        )
    share = 2 * turning / full_dim
    # 1/49 * 49 is less than 1 in floating point, and what is less is cut: the next share above is exact.
    return share if int(share * (full_dim // 2)) == turning else math.nextafter(share, 1.0)


def _decimal(value: float) -> float:
    """0.1 stored as fp32 reads 0.10000000149; the shortest decimal that stores to the
    same fp32 is what was meant."""
    return float(str(np.float32(value)))


def _shown(value: object) -> str:
    """A value out of a file, safe to print: escaped and cut."""
    return f"{value!a:.120}"


__all__ = ["ARCHITECTURES", "config_metadata", "read_config", "tables"]
