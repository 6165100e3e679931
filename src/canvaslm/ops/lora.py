"""Low-rank changes of matrix products: what an adapter adds to what a weight gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Products of fewer rows are padded: below 16 the matrix library picks other kernels, whose sums differ in the
# last bit, so that a token's bits would hang on how many others go with it.
FEWEST = 16

# Of one matrix: A [r, in], B [out, r], scale; of all experts' [E, r, in], [E, out, r].
LowRank = tuple[Tensor, Tensor, float]
# Rows [N, in] of one expert -> [N, out].
ExpertProduct = Callable[[int, Tensor], Tensor]


def low_rank(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * (x @ a.T) @ b.T for x [..., L, in], a [r, in], b [out, r] -> [..., L, out]. Differentiable.

    A row's bits do not depend on the others'.
    """
    short = FEWEST - x.shape[-2]
    wide = F.pad(x, (0, 0, 0, short)) if short > 0 else x
    out = F.linear(F.linear(wide, a.to(x.dtype)), b.to(x.dtype)) * scale
    return out[..., : x.shape[-2], :] if short > 0 else out


def adapted_experts(
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up: ExpertProduct,
    down: ExpertProduct,
    gate_up_changes: Sequence[LowRank],
    down_changes: Sequence[LowRank],
) -> Tensor:
    """`ops.experts.experts` where both products of each expert have low-rank changes.

    x [T, H]; index [T, K] int64; weights [T, K]; returns [T, H]. Experts add into a token in ascending order;
    one product after the other, so several times slower than the fused kernels. Differentiable in x, weights
    and the changes, as far as the two products are.
    """
    tokens, parts = [], []
    for expert in index.unique().tolist():
        rows, choice = (index == expert).nonzero(as_tuple=True)
        wide = x[rows]
        if len(rows) < FEWEST:
            wide = F.pad(wide, (0, 0, 0, FEWEST - len(rows)))
        both = _changed(expert, wide, gate_up, gate_up_changes)
        gate, up = both.chunk(2, dim=-1)
        hidden = F.gelu(gate, approximate="tanh") * up
        made = _changed(expert, hidden, down, down_changes)[: len(rows)]
        share = weights[rows, choice, None].to(x.dtype)
        tokens.append(rows)
        parts.append(made.to(x.dtype) * share)
    if not parts:
        return torch.zeros_like(x)
    # One after the other into a token, as listed.
    return torch.zeros_like(x).index_add(0, torch.cat(tokens), torch.cat(parts))


def _changed(expert: int, x: Tensor, product: ExpertProduct, changes: Sequence[LowRank]) -> Tensor:
    made = product(expert, x)
    for a, b, scale in changes:
        made = made + low_rank(x, a[expert], b[expert], scale).to(made.dtype)
    return made


__all__ = ["FEWEST", "ExpertProduct", "LowRank", "adapted_experts", "low_rank"]
