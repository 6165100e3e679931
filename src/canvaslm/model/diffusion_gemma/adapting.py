"""Which modules of DiffusionGemma an adapter may change, and how they come to heed it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..adapting import AdaptedExperts, AdaptedLinear, AdaptedMLP, Switch
from ..protocol import Model
from .config import DiffusionGemmaConfig
from .fused import FusedTextLayer

_MLP = ("gate_proj", "up_proj", "down_proj")


def adaptable_shapes(config: DiffusionGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Names of all matrices that an adapter may change, and their shapes [out, in] or [E, out, in]."""
    hidden, inner, expert = config.hidden_size, config.intermediate_size, config.moe_intermediate_size
    mlp = dict(zip(_MLP, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True))
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.num_layers):
        width = config.head_dim_of(i)
        queries, keys = config.num_heads * width, config.kv_heads_of(i) * width
        attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "o_proj": (hidden, queries)}
        if config.is_sliding(i):
            attention["v_proj"] = (keys, hidden)
        at = f"layers.{i}"
        shapes |= {f"{at}.self_attn.{name}": shape for name, shape in attention.items()}
        shapes |= {f"{at}.mlp.{name}": shape for name, shape in mlp.items()}
        shapes[f"{at}.router.proj"] = (config.num_experts, hidden)
        shapes[f"{at}.experts.gate_up_proj"] = (config.num_experts, 2 * expert, hidden)
        shapes[f"{at}.experts.down_proj"] = (config.num_experts, hidden, expert)
    return shapes | {f"self_conditioning.{name}": shape for name, shape in mlp.items()}


def adapt(model: Model) -> Switch:
    """Puts adapted modules in the place of all that an adapter may change; returns what they heed."""
    switch = Switch()
    for i, layer in enumerate(model.layers):
        plain: Any = layer.plain if isinstance(layer, FusedTextLayer) else layer
        at = f"layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            _linear(plain.self_attn, name, f"{at}.self_attn.{name}", switch)
        _mlp(plain.mlp, f"{at}.mlp", switch)
        _linear(plain.router, "proj", f"{at}.router.proj", switch)
        layer.experts = plain.experts = AdaptedExperts(plain.experts, f"{at}.experts", switch)
        if isinstance(layer, FusedTextLayer):
            layer.switch = switch
    if model.self_conditioning is not None:
        _mlp(model.self_conditioning, "self_conditioning", switch)
    return switch


def _linear(parent: nn.Module, attribute: str, name: str, switch: Switch) -> None:
    base = getattr(parent, attribute)
    if base is not None:  # full layers have no value projection
        setattr(parent, attribute, AdaptedLinear(base, name, switch))


def _mlp(module: Any, name: str, switch: Switch) -> None:
    if module.fused is not None:
        module.fused = AdaptedMLP(module.fused, name, switch)
        return
    for part in _MLP:
        _linear(module, part, f"{name}.{part}", switch)


__all__ = ["adapt", "adaptable_shapes"]
