"""Gemma 4's vision tower: patches of one picture -> the soft tokens that stand for it in a prompt.

Source: transformers' `modeling_gemma4.py` (Gemma4VisionModel and its embedder), whose parameter names these
are, less `encoder.`. One picture a call, unpadded: attention then needs no mask, and its memory is that of
the fused kernel. n patches, m = n / pool^2 soft tokens, H the tower's hidden size, D a head's width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UsageError
from ...ops.linear import Linear
from ...ops.norm import RMSNorm, rms_norm
from ...ops.rotary import rotate
from .config import VisionConfig

_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


class ClippedLinear(nn.Module):
    """A product without a bias, whose input and output are clamped if the checkpoint has bounds for them."""

    def __init__(self, in_features: int, out_features: int, clipped: bool, **factory: Any) -> None:
        super().__init__()
        self.linear = Linear(in_features, out_features, **factory)
        self.clipped = clipped
        if clipped:
            for name, bound in zip(_BOUNDS, (-torch.inf, torch.inf) * 2, strict=True):
                self.register_buffer(name, torch.full((), bound, **factory))

    def forward(self, x: Tensor) -> Tensor:
        if not self.clipped:
            return self.linear(x)
        low, high, least, most = (getattr(self, name) for name in _BOUNDS)
        return self.linear(x.clamp(low, high)).clamp(least, most)


class VisionAttention(nn.Module):
    """Every patch sees every other; queries, keys and values are normalised per head: the scale is 1."""

    def __init__(self, config: VisionConfig, **factory: Any) -> None:
        super().__init__()
        hidden, width, self.eps = config.hidden_size, config.num_heads * config.head_dim, config.rms_norm_eps
        self.head_dim = config.head_dim
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, ClippedLinear(hidden, width, config.clipped, **factory))
        self.o_proj = ClippedLinear(width, hidden, config.clipped, **factory)
        self.q_norm = RMSNorm(config.head_dim, self.eps, **factory)
        self.k_norm = RMSNorm(config.head_dim, self.eps, **factory)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """x [n, H], rope [1, 1, n, D] -> [n, H]."""
        q, k, v = (
            getattr(self, name)(x).view(1, len(x), -1, self.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = (turned(norm(part), rope) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        seen = F.scaled_dot_product_attention(q, k, rms_norm(v, None, self.eps), scale=1.0)
        return self.o_proj(seen[0].transpose(0, 1).reshape(len(x), -1))


def axial_table(positions: Tensor, config: VisionConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin) [1, 1, n, D] of positions (x, y) [n, 2]: a head's first half turns with x, the second with
    y, both at the same frequencies. Made in fp32."""
    half = config.head_dim // 2
    steps = torch.arange(0, half, 2, dtype=torch.float, device=positions.device)
    frequencies = 1.0 / config.rope_theta ** (steps / half)
    angles = positions.float()[:, :, None] * frequencies  # [n, 2, D / 4]
    angles = torch.cat((angles, angles), -1).flatten(1)[None, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """x [.., n, D]: each half turned inside itself."""
    tables = zip(*(table.chunk(2, dim=-1) for table in rope), strict=True)
    return torch.cat([rotate(half, its) for half, its in zip(x.chunk(2, dim=-1), tables, strict=True)], -1)


class VisionMLP(nn.Module):
    """down(gelu_tanh(gate x) * up x)."""

    def __init__(self, config: VisionConfig, **factory: Any) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = ClippedLinear(hidden, inner, config.clipped, **factory)
        self.up_proj = ClippedLinear(hidden, inner, config.clipped, **factory)
        self.down_proj = ClippedLinear(inner, hidden, config.clipped, **factory)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
        return self.down_proj(inner)


class VisionLayer(nn.Module):
    """Attention, then the MLP, each between two norms."""

    def __init__(self, config: VisionConfig, **factory: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = VisionAttention(config, **factory), VisionMLP(config, **factory)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps, **factory)
        self.post_attention_layernorm = RMSNorm(size, eps, **factory)
        self.pre_feedforward_layernorm = RMSNorm(size, eps, **factory)
        self.post_feedforward_layernorm = RMSNorm(size, eps, **factory)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class PatchEmbedder(nn.Module):
    """Pixels and places of patches."""

    def __init__(self, config: VisionConfig, **factory: Any) -> None:
        super().__init__()
        self.input_proj = Linear(3 * config.patch**2, config.hidden_size, **factory)
        table = torch.zeros(2, config.position_table, config.hidden_size, **factory)
        self.position_embedding_table = nn.Parameter(table)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """patches [n, 3 p^2] fp32 in 0 .. 1, positions (x, y) [n, 2] -> [n, H]."""
        table = self.position_embedding_table
        pixels = (2 * (patches - 0.5)).to(table.dtype)  # centred in fp32: bf16 would lose a bit of it
        return self.input_proj(pixels) + (table[0][positions[:, 0]] + table[1][positions[:, 1]])


class VisionTower(nn.Module):
    """Patches -> soft tokens, and those as the text model's embeddings."""

    std_bias: Tensor
    std_scale: Tensor

    def __init__(self, config: VisionConfig, text_hidden_size: int, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.patch_embedder = PatchEmbedder(config, **factory)
        self.layers = nn.ModuleList(VisionLayer(config, **factory) for _ in range(config.num_layers))
        if config.standardise:
            self.register_buffer("std_bias", torch.zeros(config.hidden_size, **factory))
            self.register_buffer("std_scale", torch.ones(config.hidden_size, **factory))
        self.embedding_projection = Linear(config.hidden_size, text_hidden_size, **factory)

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """patches [rows * columns, 3 p^2] fp32 in 0 .. 1, row by row -> embeddings [m, text hidden].

        The embeddings are not scaled by sqrt(hidden) as looked-up tokens are. Raises UsageError for a grid
        that the tower has no places for, or that does not fit its cells.
        """
        return self.embed(self.soft_tokens(patches, rows, columns))

    def soft_tokens(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """As `forward`, before the projection: [m, H]."""
        config = self.config
        if max(rows, columns) > config.position_table or rows % config.pool or columns % config.pool:
            raise UsageError(
                f"a picture of {rows} x {columns} patches: each side should be a multiple of {config.pool} "
                f"and at most {config.position_table}",
                param="images",
            )
        positions = grid_positions(rows, columns).to(patches.device)
        x = self.patch_embedder(patches, positions)
        rope = axial_table(positions, config, x.dtype)
        for layer in self.layers:
            x = layer(x, rope)
        return self._pooled(x, columns)

    def _pooled(self, x: Tensor, columns: int) -> Tensor:
        """Means of pool x pool patches: rounded once, then scaled and standardised in fp32, rounded again."""
        pool = self.config.pool
        cells = x.float().view(-1, pool, columns // pool, pool, x.shape[-1]).mean((1, 3)).flatten(0, 1)
        soft = cells.to(x.dtype).float() * x.shape[-1] ** 0.5
        if self.config.standardise:
            soft = (soft - self.std_bias.float()) * self.std_scale.float()
        return soft.to(x.dtype)

    def embed(self, soft: Tensor) -> Tensor:
        """Soft tokens [m, H] -> [m, text hidden]."""
        return self.embedding_projection(rms_norm(soft, None, self.config.rms_norm_eps))


def grid_positions(rows: int, columns: int) -> Tensor:
    """(x, y) of patches, row by row: [rows * columns, 2] int64."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack((x, y), -1).view(-1, 2)


__all__ = ["VisionTower", "axial_table", "grid_positions", "turned"]
