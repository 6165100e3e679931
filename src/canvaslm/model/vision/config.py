"""The sizes of Gemma 4's vision tower: `vision_config` of a `config.json`, read strictly.

Source: transformers' `configuration_gemma4.py` (Gemma4VisionConfig), whose defaults these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import BadConfig
from ..config import ConfigFields

# Of other generations, or of training; they change nothing here.
_IGNORED = {
    "architectures", "attention_dropout", "chunk_size_feed_forward", "default_output_length", "dtype",
    "global_head_dim", "id2label", "initializer_range", "is_encoder_decoder", "label2id",
    "max_position_embeddings", "model_type", "output_attentions", "output_hidden_states", "problem_type",
    "return_dict", "torch_dtype", "_name_or_path",
}  # fmt: skip
_USED = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "patch_size", "pooling_kernel_size", "position_embedding_size", "rms_norm_eps", "standardize",
    "use_clipped_linears", "rope_parameters", "hidden_activation", "attention_bias",
}  # fmt: skip


@dataclass(frozen=True)
class VisionConfig:
    """`pool` x `pool` patches of `patch` x `patch` pixels become one soft token."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 16
    num_heads: int = 12
    head_dim: int = 64
    patch: int = 16
    pool: int = 3
    position_table: int = 10_240  # rows: the most patches a side
    rms_norm_eps: float = 1e-6
    rope_theta: float = 100.0
    standardise: bool = False
    clipped: bool = False  # linear layers clamp what goes in and what comes out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VisionConfig:
        """Reads the content of `vision_config`. Raises BadConfig naming the field at fault."""
        fields = ConfigFields(data, "vision_config.")
        fields.refuse_unknown(_IGNORED | _USED)
        heads = fields.integer("num_attention_heads", 12, most=1024)
        if fields.integer("num_key_value_heads", heads, most=1024) != heads:
            raise fields.wrong("num_key_value_heads", f"{heads}, as num_attention_heads")
        if fields.word("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
            raise fields.wrong("hidden_activation", "gelu_pytorch_tanh")
        if fields.flag("attention_bias", False):
            raise fields.wrong("attention_bias", "false")
        head_dim = fields.integer("head_dim", 64, most=4096)
        if head_dim % 4:
            raise fields.wrong("head_dim", "a multiple of 4, two halves of pairs")
        return cls(
            hidden_size=fields.integer("hidden_size", 768, most=2**16),
            intermediate_size=fields.integer("intermediate_size", 3072, most=2**20),
            num_layers=fields.integer("num_hidden_layers", 16, most=1024),
            num_heads=heads,
            head_dim=head_dim,
            patch=fields.integer("patch_size", 16, most=1024),
            pool=fields.integer("pooling_kernel_size", 3, most=64),
            position_table=fields.integer("position_embedding_size", 10_240, most=2**20),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=_theta(fields),
            standardise=fields.flag("standardize", False),
            clipped=fields.flag("use_clipped_linears", False),
        )


def _theta(fields: ConfigFields) -> float:
    rope = fields.inner("rope_parameters")
    if rope is None:
        return 100.0
    kind = rope.word("rope_type", "default")
    if kind not in ("default", "axial"):  # the same thing by two names
        raise BadConfig(
            f"config.json: vision_config.rope_parameters.rope_type = {kind!a:.80} is not supported"
        )
    return rope.number("rope_theta", 100.0)


__all__ = ["VisionConfig"]
