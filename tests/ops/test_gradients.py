"""Gradients that are written by hand, against finite differences in fp64: products with frozen quantised
weights, cross-entropy by tiles, low-rank changes, and what routing weights get."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from canvaslm.ops.experts import experts_dense
from canvaslm.ops.formats.quant_tensor import QuantTensor, quantise
from canvaslm.ops.frozen import frozen_product
from canvaslm.ops.head_loss import head_loss
from canvaslm.ops.lora import LowRank, adapted_experts, low_rank
from canvaslm.ops.quantised import QuantExperts

IGNORE = -100


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(4)


def wide(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def packed(format: str, *shape: int) -> QuantTensor:
    weight = torch.randn(*shape) * 0.2
    return QuantTensor(format, shape, quantise(format, weight.view(-1, shape[-1])).flatten())


@pytest.mark.parametrize(("format", "inner"), [("Q8_0", 32), ("Q4_0", 32), ("Q4_K", 256)])
def test_products_with_frozen_weights(format: str, inner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.ops.frozen.SLICE_VALUES", 3 * inner)  # three slices, the last one short
    weight = packed(format, 7, inner)
    assert gradcheck(lambda x: frozen_product(x, weight), (wide(2, 3, inner),))
    x = torch.randn(5, inner)
    assert frozen_product(x.bfloat16(), weight).dtype == torch.float32
    torch.testing.assert_close(frozen_product(x, weight), x @ weight.dequantise().T)


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("packed_head", [False, True])
def test_cross_entropy_by_tiles(cap: float, packed_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.ops.head_loss.TILE", 8)  # three tiles, the last one short
    table = packed("Q8_0", 19, 32)
    head = table.dequantise()
    rows = (lambda start, stop: table.rows(start, stop).dequantise()) if packed_head else head
    targets = torch.tensor([0, 7, IGNORE, 8, 18])  # both edges of a tile, and no target

    def losses(hidden: Tensor) -> Tensor:
        return head_loss(hidden, targets, rows, 19, cap=cap, ignore=IGNORE)[0]

    hidden = wide(5, 32)
    assert losses(hidden).dtype == torch.float64
    assert gradcheck(losses, (hidden,))
    (back,) = torch.autograd.grad(losses(hidden).sum(), hidden)
    assert not back[2].any()
    assert back[[0, 1, 3, 4]].any(-1).all()


def test_logits_far_apart_give_no_nan_and_bf16_heads_are_read_in_fp32() -> None:
    head, hidden = torch.randn(19, 32).bfloat16(), (torch.randn(4, 32) * 300).requires_grad_()
    targets = torch.tensor([3, 4, 5, IGNORE])
    found, best = head_loss(hidden, targets, head, 19, cap=0.0, ignore=IGNORE)
    logits = hidden @ head.float().T
    want = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(found, want)
    assert torch.equal(best, logits.argmax(-1))
    got, wanted = (torch.autograd.grad(made.sum(), hidden, retain_graph=True)[0] for made in (found, want))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("tokens", [1, 5, 20])  # fewer rows than the matrix library wants, and more
def test_low_rank_changes(tokens: int) -> None:
    inputs = wide(tokens, 4), wide(3, 4), wide(6, 3)
    assert gradcheck(lambda x, a, b: low_rank(x, a, b, 0.7), inputs)


EXPERTS, TOKENS, HIDDEN, INNER, RANK = 3, 4, 4, 5, 2
INDEX = torch.tensor([[0, 2], [2, 0], [0, 2], [2, 0]])  # one expert gets no token


def product(matrix: Tensor) -> Callable[[int, Tensor], Tensor]:
    return lambda expert, rows: rows @ matrix[expert].T


def test_adapted_experts_and_routing_weights() -> None:
    gate_up, down = wide(EXPERTS, 2 * INNER, HIDDEN).detach(), wide(EXPERTS, HIDDEN, INNER).detach()
    changes = (
        wide(EXPERTS, RANK, HIDDEN), wide(EXPERTS, 2 * INNER, RANK),
        wide(EXPERTS, RANK, INNER), wide(EXPERTS, HIDDEN, RANK),
    )  # fmt: skip

    def run(x: Tensor, weights: Tensor, *four: Tensor) -> Tensor:
        one: list[LowRank] = [(four[0], four[1], 1.5)]
        two: list[LowRank] = [(four[2], four[3], 0.5)]
        return adapted_experts(x, INDEX, weights, product(gate_up), product(down), one, two)

    inputs = (wide(TOKENS, HIDDEN), wide(TOKENS, 2), *changes)
    assert gradcheck(run, inputs)
    x, weights, a, b, c, d = inputs
    merged = experts_dense(x, INDEX, weights, gate_up + 1.5 * b @ a, down + 0.5 * d @ c)
    torch.testing.assert_close(run(*inputs), merged)


def test_a_frozen_router_passes_gradients_to_its_input_through_the_weights() -> None:
    """What a token is routed by is what its experts compute with: half of its gradient goes by the router."""
    gate_up, down = wide(EXPERTS, 2 * INNER, HIDDEN).detach(), wide(EXPERTS, HIDDEN, INNER).detach()
    router = wide(EXPERTS, HIDDEN).detach()
    a, b = wide(EXPERTS, RANK, HIDDEN), wide(EXPERTS, 2 * INNER, RANK)

    def routed(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        weights = (x @ router.T).softmax(-1).gather(1, INDEX)
        return adapted_experts(x, INDEX, weights, product(gate_up), product(down), [(a, b, 1.0)], [])

    x = wide(TOKENS, HIDDEN)
    assert gradcheck(routed, (x, a, b))


def test_quantised_experts_and_their_routing_weights() -> None:
    """fp32 by construction: against autograd through the unpacked matrices."""
    gate, up, down = packed("Q8_0", 3, 64, 32), packed("Q8_0", 3, 64, 32), packed("Q8_0", 3, 32, 64)
    x, weights = torch.randn(4, 32, requires_grad=True), torch.rand(4, 2, requires_grad=True)
    outer = torch.randn(4, 32)
    whole = torch.cat([gate.dequantise(), up.dequantise()], dim=1)
    made = QuantExperts((gate, up), down)(x, INDEX, weights)
    want = experts_dense(x, INDEX, weights, whole, down.dequantise())
    torch.testing.assert_close(made, want, rtol=1e-5, atol=1e-5)
    got, wanted = (torch.autograd.grad((one * outer).sum(), (x, weights)) for one in (made, want))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
