"""One transformer layer of DiffusionGemma and its parts, in the order a token meets them.

Parameter names are those of the checkpoints (transformers' `modeling_diffusion_gemma.py`, the source of every
rule here). H = hidden size, T = tokens of all rows together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops.experts import experts
from ...ops.linear import Linear
from ...ops.norm import RMSNorm, rms_norm
from ...ops.rotary import rotate
from ..context import Context, attend_context
from ..protocol import RouterLog
from .config import DiffusionGemmaConfig


class Attention(nn.Module):
    """Grouped-query attention; queries, keys and values are normalised per head, so the softmax scale is 1.

    Full layers have no value projection: their values are the un-normed, un-rotated keys.
    """

    def __init__(self, config: DiffusionGemmaConfig, layer: int, **factory: Any) -> None:
        super().__init__()
        self.layer, self.eps = layer, config.rms_norm_eps
        self.head_dim = config.head_dim_of(layer)
        queries, keys = config.num_heads * self.head_dim, config.kv_heads_of(layer) * self.head_dim
        self.q_proj = Linear(config.hidden_size, queries, **factory)
        self.k_proj = Linear(config.hidden_size, keys, **factory)
        self.v_proj = Linear(config.hidden_size, keys, **factory) if config.is_sliding(layer) else None
        self.o_proj = Linear(queries, config.hidden_size, **factory)
        self.q_norm = RMSNorm(self.head_dim, self.eps, **factory)
        self.k_norm = RMSNorm(self.head_dim, self.eps, **factory)

    def heads(self, x: Tensor) -> Tensor:
        """[B, L, n * D] -> [B, n, L, D]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keys = self.heads(self.k_proj(x))
        values = keys if self.v_proj is None else self.heads(self.v_proj(x))
        return rotate(self.k_norm(keys), rope), rms_norm(values, None, self.eps)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, L, D], keys and values [B, kv_heads, L, D]."""
        return (rotate(self.q_norm(self.heads(self.q_proj(x))), rope), *self.keys_values(x, rope))


class GatedMLP(nn.Module):
    """down(gelu_tanh(gate x) * up x).

    `fused`, when a loader sets it, computes all of it in one kernel, and the three projections are gone.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, **factory: Any) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, **factory)
        self.up_proj = Linear(hidden_size, intermediate_size, **factory)
        self.down_proj = Linear(intermediate_size, hidden_size, **factory)
        self.fused: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x)
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Router(nn.Module):
    """Chooses top-k experts per token from the *raw residual*; the k weights sum to 1
    before per-expert scales."""

    def __init__(self, config: DiffusionGemmaConfig, **factory: Any) -> None:
        super().__init__()
        self.eps, self.top_k = config.rms_norm_eps, config.top_k_experts
        self.proj = Linear(config.hidden_size, config.num_experts, **factory)
        self.scale = nn.Parameter(torch.ones(config.hidden_size, **factory))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts, **factory))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, H] -> probabilities [T, E] fp32, weights [T, K] fp32, index [T, K] int64."""
        scaled = rms_norm(x, None, self.eps) * self.scale * x.shape[-1] ** -0.5
        probabilities = self.proj(scaled).softmax(dim=-1, dtype=torch.float32)
        weights, index = probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return probabilities, weights * self.per_expert_scale[index], index


class Experts(nn.Module):
    """All experts of a layer: gate_up_proj [E, 2I, H], down_proj [E, H, I].

    `compute` may be replaced by another way to the same result: training uses `ops.grouped.experts_sorted`.
    """

    compute = staticmethod(experts)

    def __init__(self, config: DiffusionGemmaConfig, **factory: Any) -> None:
        super().__init__()
        count, inner, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, hidden, **factory))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, inner, **factory))
        nn.init.normal_(self.gate_up_proj, std=hidden**-0.5)
        nn.init.normal_(self.down_proj, std=inner**-0.5)

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return self.compute(x, index, weights, self.gate_up_proj, self.down_proj)

    def gate_up_product(self, expert: int, x: Tensor) -> Tensor:
        """x [N, H] -> [N, 2I], of one expert."""
        return F.linear(x, self.gate_up_proj[expert])

    def down_product(self, expert: int, x: Tensor) -> Tensor:
        """x [N, I] -> [N, H], of one expert."""
        return F.linear(x, self.down_proj[expert])


class TextLayer(nn.Module):
    """Attention, then a dense MLP and the experts side by side.

    Encoder and decoder share all weights but one number: `layer_scalar` is the decoder's,
    `encoder_layer_scalar` the encoder's.
    """

    half_rope = False  # whether it wants rotary tables without the half that repeats

    layer_scalar: Tensor
    encoder_layer_scalar: Tensor
    experts: nn.Module  # `Experts`, or a layer with packed weights
    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    pre_feedforward_layernorm: RMSNorm
    pre_feedforward_layernorm_2: RMSNorm
    post_feedforward_layernorm: RMSNorm
    post_feedforward_layernorm_1: RMSNorm
    post_feedforward_layernorm_2: RMSNorm

    def __init__(self, config: DiffusionGemmaConfig, layer: int, **factory: Any) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer, **factory)
        self.mlp = GatedMLP(hidden, config.intermediate_size, **factory)
        self.router = Router(config, **factory)
        self.experts = Experts(config, **factory)
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "pre_feedforward_layernorm_2", "post_feedforward_layernorm",
                     "post_feedforward_layernorm_1", "post_feedforward_layernorm_2"):  # fmt: skip
            self.add_module(name, RMSNorm(hidden, eps, **factory))
        self.register_buffer("layer_scalar", torch.ones(1, **factory))
        self.register_buffer("encoder_layer_scalar", torch.ones(1, **factory))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        rope: tuple[Tensor, Tensor],
        context: Context,
        *,
        encoded: int,
        router_log: RouterLog | None = None,
    ) -> Tensor:
        """x [B, L, H] -> [B, L, H]. The first `encoded` of the L tokens are being encoded,
        the others are canvases."""
        q, k, v = self.before(x, rope)
        seen = attend_context(context, self.self_attn.layer, q, k, v, positions, encoded)
        x, probabilities, index = self.after(x, seen, self._scalar(encoded, x.shape[1]))
        if router_log is not None:
            router_log.append((probabilities, index))
        return x

    def _scalar(self, encoded: int, length: int) -> Tensor:
        """The layer scalar of each token: [1], or [L, 1] where both kinds meet."""
        if encoded == 0:
            return self.layer_scalar
        if encoded == length:
            return self.encoder_layer_scalar
        parts = self.encoder_layer_scalar.expand(encoded), self.layer_scalar.expand(length - encoded)
        return torch.cat(parts)[:, None]

    # What comes before and after attention knows no context and no phase: two functions that training
    # compiles once for all layers (`train.fast`).

    def before(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Residual x [B, L, H] -> queries, keys, values."""
        return self.self_attn.project(self.input_layernorm(x), rope)

    def after(self, x: Tensor, seen: Tensor, scalar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residual x [B, L, H] and attention's output [B, L, heads * D] -> next
        residual, the router's choices."""
        x = x + self.post_attention_layernorm(self.self_attn.o_proj(seen))
        added, probabilities, index = self.feed_forward(x)
        return (x + self.post_feedforward_layernorm(added)) * scalar, probabilities, index

    def feed_forward(self, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """residual [B, L, H] -> [B, L, H], router probabilities [T, E] and choices [T, K]."""
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(residual)))
        tokens = residual.flatten(0, 1)
        probabilities, weights, index = self.router(tokens)
        sparse = self.experts(self.pre_feedforward_layernorm_2(tokens), index, weights)
        both = dense + self.post_feedforward_layernorm_2(sparse).view_as(residual)
        return both, probabilities, index

    def append_keys_values(
        self, x: Tensor, positions: Tensor, rope: tuple[Tensor, Tensor], context: Context
    ) -> None:
        """Stores keys and values only: all that the last layer owes when encoding."""
        k, v = self.self_attn.keys_values(self.input_layernorm(x), rope)
        context.append(self.self_attn.layer, k, v, positions)


class SelfConditioning(GatedMLP):
    """Mixes the soft embedding of the last step's prediction into the canvas's embeddings."""

    def __init__(self, config: DiffusionGemmaConfig, **factory: Any) -> None:
        super().__init__(config.hidden_size, config.intermediate_size, **factory)
        self.pre_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)

    def forward(self, embedded: Tensor, soft: Tensor | None = None) -> Tensor:
        """embedded, soft [B, C, H]. `None` is the zero soft embedding of a canvas's first
        step, which maps to zero."""
        if soft is not None:
            embedded = embedded + super().forward(self.pre_norm(soft))
        return rms_norm(embedded, None, self.pre_norm.eps)


__all__ = ["Attention", "Experts", "GatedMLP", "Router", "SelfConditioning", "TextLayer"]
