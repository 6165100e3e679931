"""Sizes that go by a name: the released model's, and a small one with its whole
vocabulary, for made-up weights."""

from __future__ import annotations

from .config import FULL, SLIDING, DiffusionGemmaConfig


def _layers(count: int) -> tuple[str, ...]:
    return tuple(FULL if i % 6 == 5 else SLIDING for i in range(count))


SHAPES = {
    "26b": DiffusionGemmaConfig(
        vocab_size=262_144,
        hidden_size=2816,
        intermediate_size=2112,
        num_layers=30,
        num_heads=16,
        num_kv_heads=8,
        num_global_kv_heads=2,
        head_dim=256,
        global_head_dim=512,
        layer_types=_layers(30),
        sliding_window=1024,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
        canvas_length=256,
        max_position_embeddings=262_144,
        eos_token_ids=(1, 106),
    ),
    # Few enough weights for a test, the whole vocabulary: the head's share of the work is at its largest.
    "small": DiffusionGemmaConfig(
        vocab_size=262_144,
        hidden_size=512,
        intermediate_size=2112,
        num_layers=6,
        num_heads=8,
        num_kv_heads=4,
        num_global_kv_heads=2,
        head_dim=128,
        global_head_dim=256,
        layer_types=_layers(6),
        sliding_window=1024,
        num_experts=16,
        top_k_experts=4,
        moe_intermediate_size=960,
        canvas_length=256,
        max_position_embeddings=262_144,
        eos_token_ids=(1, 106),
    ),
}

__all__ = ["SHAPES"]
