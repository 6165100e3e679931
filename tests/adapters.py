"""Random adapters for tiny models."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from canvaslm.model import Model
from canvaslm.model.adapters import Adapter, WeightDelta

EVERY = ("self_attn", "mlp", "router", "experts", "self_conditioning")


def random_delta(shape: tuple[int, ...], rank: int, seed: int, size: float = 0.5) -> WeightDelta:
    *experts, out, inner = shape
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(*experts, rank, inner, generator=g) * inner**-0.5
    return WeightDelta(a, torch.randn(*experts, out, rank, generator=g) * size * rank**-0.5, 0.5)


def random_adapter(
    model: Model, *, rank: int = 3, seed: int = 0, parts: Sequence[str] = EVERY, sides: str = "both"
) -> Adapter:
    """sides: "both" (apart), "equal", "encode" or "denoise". Changes large enough to change every answer."""
    shapes = {name: s for name, s in model.adaptable().items() if any(part in name for part in parts)}

    def side(first: int) -> dict[str, WeightDelta]:
        return {name: random_delta(s, rank, first + i) for i, (name, s) in enumerate(shapes.items())}

    if sides == "equal":
        made = side(1000 * seed)
        return Adapter(made, made)
    encode = side(1000 * seed) if sides in ("both", "encode") else {}
    return Adapter(encode, side(1000 * seed + 500) if sides in ("both", "denoise") else {})


__all__ = ["EVERY", "random_adapter", "random_delta"]
