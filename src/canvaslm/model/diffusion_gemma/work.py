"""The work of DiffusionGemma's layers, counted from the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..config import ModelConfig
from ..protocol import Model
from ..work import ATTENTION, DENSE, EXPERTS, GLUE, PROJECTIONS, Work
from .config import DiffusionGemmaConfig
from .text import TextLayer


def layer_macs(config: ModelConfig, layer: int, tokens: int, pairs: int) -> dict[str, int]:
    """Multiply-accumulates of one layer on `tokens`, of which queries and keys meet in `pairs`."""
    assert isinstance(config, DiffusionGemmaConfig)
    c = config
    queries = c.num_heads * c.head_dim_of(layer)
    return {
        PROJECTIONS: tokens * c.hidden_size * (2 * queries + key_width(c, layer)),
        ATTENTION: 2 * pairs * queries,
        DENSE: 3 * tokens * c.hidden_size * c.intermediate_size,
        EXPERTS: 3 * tokens * c.top_k_experts * c.hidden_size * c.moe_intermediate_size,
        GLUE: tokens * c.hidden_size * c.num_experts,
    }


def key_width(config: ModelConfig, layer: int) -> int:
    """Columns of the key and, in sliding layers, the value projection."""
    return (2 if config.is_sliding(layer) else 1) * config.kv_heads_of(layer) * config.head_dim_of(layer)


def self_macs(config: ModelConfig) -> int:
    """Multiply-accumulates of the self-conditioning MLP on one place."""
    assert isinstance(config, DiffusionGemmaConfig)
    return 3 * config.hidden_size * config.intermediate_size


def modules(model: Model) -> Iterator[tuple[nn.Module, str]]:
    """The modules of all layers that hold weights, and their parts."""
    for layer in model.layers:
        plain = getattr(
            layer, "plain", layer
        )  # a layer that runs whole on native kernels holds the plain one
        assert isinstance(plain, TextLayer)
        for name, child in plain.self_attn.named_children():
            yield child, GLUE if name.endswith("norm") else PROJECTIONS
        yield plain.mlp, DENSE
        yield plain.experts, EXPERTS
        yield plain.router, GLUE


WORK = Work(layer_macs, key_width, self_macs, modules)

__all__ = ["WORK", "key_width", "layer_macs", "modules", "self_macs"]
