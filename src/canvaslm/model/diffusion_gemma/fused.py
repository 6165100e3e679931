"""A layer whose every step is a native kernel: the fast twin of `model.text.TextLayer`,
for packed models on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...ops.backend import for_format
from ...ops.cpu import elementwise
from ...ops.cpu.backend import NAME
from ...ops.cpu.repacked import RepackedMatrix
from ...ops.norm import RMSNorm
from ..adapting import AdaptedSpan, Switch
from ..context import Context, attend_context
from ..protocol import Model, RouterLog
from .text import SelfConditioning, TextLayer


def fuse(model: Model) -> None:
    """Puts native twins in the place of all layers that are repacked throughout, and of
    what stands around them.

    Keys and values are then stored as these layers' attention reads them. A model of
    other layers stays as it is.
    """
    if not any(map(_repacked, model.modules())):
        return
    for i, layer in enumerate(model.layers):
        if isinstance(layer, TextLayer) and _can_fuse(layer):
            model.layers[i] = FusedTextLayer(layer)
            attention = for_format("attention", model.device, str(layer.self_attn.q_proj.format))
            assert attention is not None
            model.store = attention.make()
    if all(isinstance(layer, FusedTextLayer) for layer in model.layers) and _repacked_head(model):
        model.fewest = 1  # these kernels add up a row the same way, however many there are
    assert isinstance(model.norm, RMSNorm) and isinstance(model.self_conditioning, SelfConditioning)
    model.add_module("norm", FusedNorm(model.norm))
    if model.self_conditioning.fused is not None:
        model.add_module("self_conditioning", FusedSelfConditioning(model.self_conditioning))


def _can_fuse(layer: TextLayer) -> bool:
    """Whether all large weights of a layer are repacked, so that `FusedTextLayer` can take its place."""
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.o_proj, attention.v_proj)
    large = (*(p for p in projections if p is not None), layer.mlp.fused, layer.experts)
    return all(map(_repacked, large))


def _repacked_head(model: Model) -> bool:
    return getattr(model.head, "predict_kernel", None) is not None


def _repacked(module: nn.Module | None) -> bool:
    """Whether a module's weights lie as the CPU's kernels want them."""
    return getattr(module, "backend", None) == NAME


class FusedTextLayer(nn.Module):
    """Same arithmetic as the TextLayer it wraps, in a dozen calls; fp32 activations, CPU, inference only."""

    half_rope = True
    switch: Switch | None = None  # once adapted

    def __init__(self, layer: TextLayer) -> None:
        super().__init__()
        self.plain = layer
        self.experts = layer.experts
        router = layer.router
        self.eps = router.eps
        self.router = RepackedMatrix.from_float(router.proj.weight.detach(), "F32")
        self.router_scale = (router.scale.detach() * router.scale.numel() ** -0.5).contiguous()
        self.scalar, self.encoder_scalar = float(layer.layer_scalar), float(layer.encoder_layer_scalar)

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
        """x [B, L, H] -> [B, L, H]; see TextLayer. Both kinds of tokens at once only with
        B = 1. rope: half tables.

        The router's probabilities are not kept: `router_log` must be None.
        """
        if len(x) > 1 and 0 < encoded < x.shape[1]:
            raise ValueError(f"packed layers mix both kinds of tokens in one row, not in {len(x)}")
        if router_log is not None:
            raise ValueError("packed layers do not log their routing; load the model with a dtype instead")
        layer, attention = self.plain, self.plain.self_attn
        normed = elementwise.rms_norm(x, layer.input_layernorm.weight, self.eps)
        q = self._heads(attention.q_proj(normed), attention.q_norm.weight, rope)
        k, v = self._keys_values(normed, rope)
        seen = attention.o_proj(attend_context(context, attention.layer, q, k, v, positions, encoded))
        x = elementwise.rms_norm(seen, layer.post_attention_layernorm.weight, self.eps, residual=x)
        return self._feed_forward(x, len(x) * encoded)

    def append_keys_values(
        self, x: Tensor, positions: Tensor, rope: tuple[Tensor, Tensor], context: Context
    ) -> None:
        """See TextLayer."""
        normed = elementwise.rms_norm(x, self.plain.input_layernorm.weight, self.eps)
        k, v = self._keys_values(normed, rope)
        context.append(self.plain.self_attn.layer, k, v, positions)

    def _keys_values(self, normed: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        attention = self.plain.self_attn
        keys = attention.k_proj(normed)
        values = keys.clone() if attention.v_proj is None else attention.v_proj(normed)
        return self._heads(keys, attention.k_norm.weight, rope), self._heads(values, None, None)

    def _heads(self, x: Tensor, weight: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """[B, L, n * D] -> [B, n, L, D], normed per head and rotated, in place."""
        width = self.plain.self_attn.head_dim
        heads = x.view(-1, x.shape[-1] // width, width)
        table = None if rope is None else (rope[0].flatten(0, 2), rope[1].flatten(0, 2))
        elementwise.norm_rope(heads, weight, self.eps, table)
        return heads.view(*x.shape[:2], -1, width).transpose(1, 2)

    def _route_adapted(self, tokens: Tensor, index: Tensor, weights: Tensor) -> None:
        """Writes over the choices of tokens for which an adapter changes the router."""
        assert self.switch is not None
        proj = self.plain.router.proj
        for part, span in self.switch.wanted(str(proj.name)):
            rows = slice(None) if part is None else part
            with self.switch.using([AdaptedSpan(0, None, span.changes)]):
                _, weights[rows], index[rows] = self.plain.router(tokens[rows])

    def _feed_forward(self, x: Tensor, encoded: int) -> Tensor:
        """`encoded` counts tokens of all rows."""
        layer, tokens = self.plain, x.flatten(0, 1)
        dense = layer.mlp(elementwise.rms_norm(tokens, layer.pre_feedforward_layernorm.weight, self.eps))
        index, weights = elementwise.route(
            tokens,
            self.router_scale,
            self.router,
            layer.router.per_expert_scale,
            layer.router.top_k,
            self.eps,
        )
        if self.switch is not None:
            self._route_adapted(tokens, index, weights)
        normed = elementwise.rms_norm(tokens, layer.pre_feedforward_layernorm_2.weight, self.eps)
        routed = self.experts(normed, index, weights)
        out = torch.empty_like(tokens)
        for part, scalar in ((slice(encoded), self.encoder_scalar), (slice(encoded, None), self.scalar)):
            if not len(out[part]):
                continue
            elementwise.join_feed_forward(
                dense[part],
                layer.post_feedforward_layernorm_1.weight,
                routed[part],
                layer.post_feedforward_layernorm_2.weight,
                layer.post_feedforward_layernorm.weight,
                tokens[part],
                scalar,
                self.eps,
                out=out[part],
            )
        return out.view_as(x)


class FusedNorm(nn.Module):
    """`RMSNorm` on the native kernel; fp32, CPU, inference only."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return elementwise.rms_norm(x, self.weight, self.eps)


class FusedSelfConditioning(nn.Module):
    """Same arithmetic as the SelfConditioning it wraps, whose MLP must be packed."""

    def __init__(self, plain: SelfConditioning) -> None:
        super().__init__()
        assert plain.fused is not None
        self.fused, self.pre_norm = plain.fused, FusedNorm(plain.pre_norm)

    def forward(self, embedded: Tensor, soft: Tensor | None = None) -> Tensor:
        """See SelfConditioning."""
        if soft is not None:
            embedded = embedded + self.fused(self.pre_norm(soft))
        return elementwise.rms_norm(embedded, None, self.pre_norm.eps)


__all__ = ["FusedNorm", "FusedSelfConditioning", "FusedTextLayer", "fuse"]
