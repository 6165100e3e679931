"""Mixture of experts: every token goes through its top-k gated MLPs, weighted by the router.

Weights are 3-D as in the checkpoints: gate_up [E, 2I, H] (gate rows first), down [E, H, I].
Two ways to the same result:

* `experts_grouped` sorts tokens by expert and runs each expert once over its own
  tokens. Right for real sizes.
* `experts_dense` runs all experts over all tokens in two large products and lets zero weights drop
  what was not routed. E/K times the arithmetic, but a handful of kernels: right for tiny experts
  and for `torch.compile`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to this many weights per layer the dense way is faster, on CPU and GPU alike: kernel starts dominate.
DENSE_LIMIT = 1_000_000


def experts(x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Sum over each token's experts of weight * down(gelu(gate x) * up x).

    x [T, H]; index [T, K] int64, the experts of each token; weights [T, K]; returns [T, H] in x's dtype.
    """
    if gate_up.numel() + down.numel() <= DENSE_LIMIT:
        return experts_dense(x, index, weights, gate_up, down)
    return experts_grouped(x, index, weights, gate_up, down)


def experts_grouped(x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One pair of products per expert that has tokens; experts add into a token in ascending order."""
    out = torch.zeros_like(x)
    order = index.flatten().argsort(stable=True)
    tokens = order // index.shape[1]
    counts = index.flatten().bincount(minlength=gate_up.shape[0]).tolist()
    routed = weights.flatten()[order].to(x.dtype)
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows, share = tokens[start : start + count], routed[start : start + count, None]
        gate, up = F.linear(x[rows], gate_up[expert]).chunk(2, dim=-1)
        hidden = F.gelu(gate, approximate="tanh") * up
        out.index_add_(0, rows, F.linear(hidden, down[expert]) * share)
        start += count
    return out


def experts_dense(x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """All experts over all tokens; what was not routed is multiplied by zero before `down` adds it up."""
    count, _, hidden = gate_up.shape
    share = x.new_zeros(x.shape[0], count).scatter(1, index, weights.to(x.dtype))
    gate, up = F.linear(x, gate_up.reshape(-1, hidden)).view(x.shape[0], count, -1).chunk(2, dim=-1)
    inner = F.gelu(gate, approximate="tanh") * up * share[..., None]
    return inner.flatten(1) @ down.transpose(1, 2).reshape(-1, hidden)


__all__ = ["DENSE_LIMIT", "experts", "experts_dense", "experts_grouped"]
