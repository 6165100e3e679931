"""What a person is told of a DiffusionGemma model's architecture."""

from __future__ import annotations

from ..config import ModelConfig
from .config import DiffusionGemmaConfig


def summary(config: ModelConfig) -> list[tuple[str, str]]:
    """Rows of (label, text): the type first."""
    assert isinstance(config, DiffusionGemmaConfig)
    c = config
    sliding = sum(c.is_sliding(i) for i in range(c.num_layers))
    return [
        ("type", "diffusion_gemma (block diffusion, mixture of experts)"),
        (
            "layers",
            f"{c.num_layers}: {sliding} sliding (window {c.sliding_window:,}), {c.num_layers - sliding} full",
        ),
        ("hidden size", f"{c.hidden_size:,}"),
        ("sliding attention", f"{c.num_heads} heads of {c.head_dim}, {c.num_kv_heads} for keys and values"),
        (
            "full attention",
            f"{c.num_heads} heads of {c.global_head_dim}, {c.num_global_kv_heads} for keys (values are keys)",
        ),
        ("feed-forward", f"dense {c.intermediate_size:,}"),
        ("experts", f"{c.num_experts} of {c.moe_intermediate_size:,}, {c.top_k_experts} active"),
    ]


__all__ = ["summary"]
