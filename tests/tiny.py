"""Tiny worlds: models of a few thousand weights, ours and transformers', with equal weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from canvaslm.model.diffusion_gemma import DiffusionGemma, DiffusionGemmaConfig

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "num_global_kv_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": ("sliding_attention", "full_attention"),
    "sliding_window": 8,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "canvas_length": 8,
}


def tiny_config(**changes: Any) -> DiffusionGemmaConfig:
    return DiffusionGemmaConfig(**{**SIZES, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> DiffusionGemma:
    """A random model in fp32, sharp enough that canvases converge."""
    torch.manual_seed(seed)
    return DiffusionGemma(tiny_config(**changes)).eval()


def hf_config(config: DiffusionGemmaConfig) -> Any:
    """transformers' configuration of the same sizes, with the smallest vision tower."""
    from transformers import DiffusionGemmaConfig as HFConfig

    data = config.to_dict()
    data.pop("architectures")
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "position_embedding_size": 16,
    }
    return HFConfig(**{**data, "vision_config": vision})


def hf_model(config: DiffusionGemmaConfig, seed: int = 0, scale: float = 1.0) -> Any:
    """transformers' model with random weights: every norm, scale and layer scalar
    away from its default of 1."""
    from transformers import DiffusionGemmaForBlockDiffusion

    torch.manual_seed(seed)
    model = DiffusionGemmaForBlockDiffusion(hf_config(config)).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "vision" in name or "inv_freq" in name or name.endswith("embed_scale"):
                continue
            if name.endswith("layer_scalar") or tensor.ndim == 1:
                tensor.uniform_(0.7, 1.3)
            else:
                tensor.normal_(std=scale * tensor.shape[-1] ** -0.5)
        model.model.decoder.embed_tokens.weight.normal_(std=scale)
        if not config.tie_word_embeddings:
            # "Untied" in the checkpoint's sense: only the head is its own; encoder and decoder are one stack.
            _share_stack(model)
    return model


def _share_stack(model: Any) -> None:
    ours = dict(model.model.decoder.named_parameters())
    for name, tensor in model.model.encoder.language_model.named_parameters():
        tensor.copy_(ours[name])


def write_tiny_gguf(model: DiffusionGemma, path: Path, kind: str) -> Path:
    """A GGUF file of a tiny model with the demo's tokenizer, which the vocabulary must hold."""
    from canvaslm.demo.config import MODEL_FOLDER
    from canvaslm.weights.gguf.quantize import write_gguf
    from canvaslm.weights.gguf.source import open_source
    from canvaslm.weights.safetensors_.export import save_folder

    folder = save_folder(model, model.config, path.with_suffix(""))
    (folder / "tokenizer.json").write_text((MODEL_FOLDER / "tokenizer.json").read_text())
    write_gguf(open_source(folder), path, kind)
    return path


def save_hf(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


__all__ = ["SIZES", "hf_config", "hf_model", "save_hf", "tiny_config", "tiny_model", "write_tiny_gguf"]
