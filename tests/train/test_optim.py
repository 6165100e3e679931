"""Muon, schedules, averaging: exact on small matrices."""

from __future__ import annotations

import pytest
import torch

from canvaslm.train.optim import Average, Muon, Optimizers, factor, orthogonalised
from canvaslm.train.settings import OptimSettings
from tests.tiny import tiny_model


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 12), (2, 12, 4)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_directions(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    out = orthogonalised(matrices)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ out @ v.mT
    off = turned - torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-4


def test_muon_treats_a_stack_as_its_matrices() -> None:
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 6, 4))
    single = [torch.nn.Parameter(m.clone()) for m in stack.detach()]
    gradients = torch.randn(2, 3, 6, 4)
    together, apart = Muon([stack], 0.1), Muon(single, 0.1)
    for gradient in gradients:
        stack.grad = gradient
        for parameter, own in zip(single, gradient, strict=True):
            parameter.grad = own
        together.step()
        apart.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in single]))


def test_muon_steps_by_its_rate_whatever_the_gradients_size() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 8), torch.randn(8, 8)
    moves = []
    for size in (1e-3, 1e3):
        parameter = torch.nn.Parameter(start.clone())
        parameter.grad = gradient * size
        Muon([parameter], 0.1).step()
        moves.append(parameter.detach() - start)
    torch.testing.assert_close(moves[0], moves[1], atol=1e-5, rtol=1e-3)
    assert torch.linalg.matrix_norm(moves[0], 2) == pytest.approx(0.1, rel=0.3)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = tiny_model()
    optimizers = Optimizers(model.named_parameters(), OptimSettings(muon_lr=0.02))
    ids = {id(p): name for name, p in model.named_parameters()}
    muon, adam = (
        {ids[id(p)] for g in part.param_groups for p in g["params"]} for part, _ in optimizers.parts
    )
    assert muon | adam == set(ids.values())
    assert {
        "embed_tokens.weight",
        "norm.weight",
        "layers.0.router.proj.weight",
        "layers.1.router.scale",
    } <= adam
    assert {"layers.0.experts.gate_up_proj", "layers.1.self_attn.q_proj.weight"} <= muon
    assert not any("norm" in name or "router" in name or "embed" in name for name in muon)


def test_warm_up_then_cosine() -> None:
    settings = OptimSettings(warmup=4, schedule="cosine", final=0.1)
    assert [factor(settings, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(settings, 99, 0.5) == pytest.approx(0.55)
    assert factor(settings, 99, 1.0) == pytest.approx(0.1)


def test_constant_then_linear() -> None:
    settings = OptimSettings(warmup=0, schedule="linear", decay=0.6, final=0.0)
    shares = [factor(settings, 9, p) for p in (0.0, 0.4, 0.7, 1.0, 1.5)]
    assert shares == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])


def test_the_average_moves_by_its_decay_after_a_short_start() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = Average(model, 0.5)
    torch.nn.init.ones_(model.weight)
    seen = []
    for _ in range(3):
        average.update(model)
        seen.append(float(average.tensors["weight"]))
    first = 1 - 2 / 11
    assert seen == pytest.approx([first, first + (1 - first) * (1 - 3 / 12), 1 - (1 - seen[1]) * 4 / 13])
    average.count = 1000
    average.update(model)
    assert float(average.tensors["weight"]) == pytest.approx(1 - (1 - seen[2]) * 0.5)


def test_clipping_returns_the_norm_before() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    optimizers = Optimizers(model.named_parameters(), OptimSettings(clip=1.0))
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(optimizers.clip()) == 5
    assert model.weight.grad.norm().item() == pytest.approx(1, rel=1e-4)
