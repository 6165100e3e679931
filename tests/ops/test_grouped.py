"""Sorted experts equal the dense ones, values and gradients, whatever the groups' sizes."""

from __future__ import annotations

import pytest
import torch

from canvaslm.ops.experts import experts_dense
from canvaslm.ops.grouped import ROUND, experts_sorted, grouped_linear, grouped_outer


@pytest.mark.parametrize(("tokens", "count", "top"), [(1, 2, 1), (7, 4, 2), (100, 8, 2), (3 * ROUND, 3, 3)])
@pytest.mark.parametrize("idle", [False, True])
def test_sorted_equals_dense(tokens: int, count: int, top: int, idle: bool) -> None:
    torch.manual_seed(tokens)
    make = lambda *shape: torch.randn(*shape, dtype=torch.double, requires_grad=True)  # noqa: E731
    inputs = make(tokens, 6), make(tokens, top), make(count + idle, 10, 6), make(count + idle, 6, 5)
    index = torch.rand(tokens, count).topk(top).indices  # with `idle`, the last expert gets no token
    x, weights, gate_up, down = inputs
    results = []
    for compute in (experts_dense, experts_sorted):
        out = compute(x, index, weights, gate_up, down)
        results.append((out, *torch.autograd.grad((out * torch.arange(6)).square().sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("sizes", [(0, 3, 0), (ROUND, 1, 2 * ROUND + 1), (1, 0, ROUND), (5,)])
def test_grouped_products_by_hand(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ends = torch.tensor(sizes).cumsum(0)
    x, other, weight = torch.randn(sum(sizes), 4), torch.randn(sum(sizes), 3), torch.randn(len(sizes), 3, 4)
    parts = x.split(list(sizes))
    expected = torch.cat([part @ w.T for part, w in zip(parts, weight, strict=True)])
    torch.testing.assert_close(grouped_linear(x, weight, ends), expected)
    outer = torch.stack([o.T @ part for o, part in zip(other.split(list(sizes)), parts, strict=True)])
    torch.testing.assert_close(grouped_outer(other, x, ends), outer)


def test_autocast_computes_in_bf16_and_returns_the_inputs_type() -> None:
    torch.manual_seed(0)
    x, index, weights = torch.randn(9, 8), torch.rand(9, 4).topk(2).indices, torch.rand(9, 2)
    gate_up, down = torch.randn(4, 8, 8), torch.randn(4, 8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = experts_sorted(x, index, weights, gate_up, down)
    exact = experts_sorted(x, index, weights, gate_up, down)
    assert out.dtype == torch.float32
    assert not torch.equal(out, exact)
    torch.testing.assert_close(out, exact, atol=0.1, rtol=0.1)
