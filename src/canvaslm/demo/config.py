"""Sizes and defaults of the demo model, as the files beside its weights say them (HF
layout, transformers 5.23)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODEL_FOLDER = Path(__file__).parent / "model"
PAD, EOS, BOS, UNK = 0, 1, 2, 3
VOCAB_SIZE = 1024
CANVAS_LENGTH = 64
LAYERS = 6


def config(end_of_turn: int) -> dict[str, Any]:
    """`config.json`. `end_of_turn` is the id of `<turn|>`, which ends generation as `<eos>` does.

    The vision tower is the smallest that transformers can construct; the demo model has no weights for one.
    """
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "canvas_length": CANVAS_LENGTH,
        "dtype": "bfloat16",
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "boi_token_id": 17,
        "eoi_token_id": 18,
        "image_token_id": 19,
        "text_config": _text_config(end_of_turn),
        "vision_config": _vision_config(),
    }


def _text_config(end_of_turn: int) -> dict[str, Any]:
    return {
        "model_type": "diffusion_gemma_text",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "per_layer_config": {str(LAYERS - 1): {"head_dim": 64, "num_key_value_heads": 1}},
        "layer_types": ["sliding_attention"] * (LAYERS - 1) + ["full_attention"],
        "sliding_window": 128,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "tie_word_embeddings": True,
        "use_bidirectional_attention": "vision",
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": [EOS, end_of_turn],
    }


def _vision_config() -> dict[str, Any]:
    return {
        "model_type": "gemma4_vision",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "position_embedding_size": 64,
    }


def generation_config(end_of_turn: int) -> dict[str, Any]:
    """`generation_config.json`: the defaults of sampling."""
    return {
        "max_new_tokens": 256,
        "max_denoising_steps": 48,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
        "t_min": 0.4,
        "t_max": 0.8,
        "stability_threshold": 1,
        "confidence_threshold": 0.005,
        "eos_token_id": [EOS, end_of_turn],
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "transformers_version": "5.23.0",
    }


__all__ = [
    "BOS",
    "CANVAS_LENGTH",
    "EOS",
    "MODEL_FOLDER",
    "PAD",
    "UNK",
    "VOCAB_SIZE",
    "config",
    "generation_config",
]
