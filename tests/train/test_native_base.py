"""Training through a base whose weights lie repacked for the native kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from canvaslm.model.diffusion_gemma.fused import FusedTextLayer
from canvaslm.ops import backend, cpu, plain
from canvaslm.ops.formats.quant_tensor import QuantTensor, quantise
from canvaslm.ops.quantised import QuantExperts, QuantVocabulary
from canvaslm.train.data import Shuffled, TrainingExample
from canvaslm.train.memory import plan_memory
from canvaslm.train.settings import settings_from_dict
from canvaslm.train.sft import Trainer
from canvaslm.weights.gguf.load import load_quantised
from tests.tiny import tiny_model, write_tiny_gguf

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")

# Of the norm: activations are rounded to int8 on the way forward, which gelu's slope sees.
ROUNDED = 0.03
EXAMPLES = [TrainingExample((2, 10 + i % 4, 20, 6), (10 + i % 4,) * 4 + (7,)) for i in range(12)]
SIZES = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256}


def packed(format: str, *shape: int) -> QuantTensor:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.1
    return QuantTensor(format, shape, quantise(format, weight.view(-1, shape[-1])).flatten())


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).detach().norm() / want.detach().double().norm())


def made(operation: Any, name: str, *weights: Any) -> Any:
    from canvaslm.ops.cpu.repacker import Repacker

    kernel = backend.choose(operation, "cpu", *weights)
    assert kernel.backend == "cpu"
    return kernel.make(name, *weights, Repacker())


def test_what_flows_back_through_a_product_is_exact() -> None:
    weight = packed("Q8_0", 70, 256)
    layer = made("linear", "one", weight)
    x = torch.randn(2, 5, 256, requires_grad=True)
    outer = torch.randn(2, 5, 70)
    (got,) = torch.autograd.grad((layer(x) * outer).sum(), x)
    assert error(got, outer @ weight.dequantise()) < 1e-6
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.detach()))


def test_experts_give_what_their_plain_twin_gives() -> None:
    gate_up, down = packed("Q8_0", 4, 2 * 32, 256), packed("Q8_0", 4, 256, 32)
    native, twin = made("experts", "some", (gate_up,), down), QuantExperts((gate_up,), down)
    x, weights = torch.randn(9, 256, requires_grad=True), torch.rand(9, 2, requires_grad=True)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(9)])
    outer = torch.randn(9, 256)
    outs = [layer(x, index, weights) for layer in (native, twin)]
    assert error(*outs) < ROUNDED
    grads = [torch.autograd.grad((out * outer).sum(), (x, weights)) for out in outs]
    for got, want in zip(*grads, strict=True):
        assert error(got, want) < ROUNDED


def test_a_gated_mlp_gives_what_its_products_give() -> None:
    gate, up, down = packed("Q8_0", 64, 256), packed("Q8_0", 64, 256), packed("Q8_0", 256, 64)
    kernel = backend.find("gated_mlp", "cpu", gate, up, down)
    assert kernel is not None
    from canvaslm.ops.cpu.repacker import Repacker

    layer = kernel.make("one", gate, up, down, Repacker())
    x = torch.randn(2, 3, 256)
    dense = [w.dequantise().requires_grad_(False) for w in (gate, up, down)]
    wanted = x.clone().requires_grad_()
    inner = torch.nn.functional.gelu(wanted @ dense[0].T, approximate="tanh") * (wanted @ dense[1].T)
    outer = torch.randn(2, 3, 256)
    (want,) = torch.autograd.grad((inner @ dense[2].T * outer).sum(), wanted)
    (got,) = torch.autograd.grad((layer(other := x.clone().requires_grad_()) * outer).sum(), other)
    assert error(got, want) < ROUNDED
    assert error(layer(other), layer(x)) < 1e-2


def test_rows_of_a_vocabulary_are_those_of_its_twin() -> None:
    table = packed("Q6_K", 96, 256)
    native = made("predict", "words", table)
    assert torch.equal(native.tile(32, 200), QuantVocabulary(table).tile(32, 200))


def settings(folder: Path) -> Any:
    return settings_from_dict(
        {
            "run": {"steps": 20, "folder": str(folder), "recompute": True}, "model": {"base": "unused"},
            "data": {"source": "unused", "batch": 4}, "optim": {"lr": 2e-2, "warmup": 1},
            "lora": {"rank": 4, "targets": ["attention", "mlp", "experts", "router"]},
        }
    )  # fmt: skip


def test_a_base_is_trained_as_it_lies_and_close_to_its_plain_twin(tmp_path: Path) -> None:
    path = write_tiny_gguf(tiny_model(1, canvas_length=8, **SIZES), tmp_path / "m.gguf", "Q4_K_M")
    curves = []
    for native in (True, False):
        with backend.differentiable() if native else backend.only(plain.BACKEND):
            model = load_quantised(path).model
        assert not any(isinstance(layer, FusedTextLayer) for layer in model.layers)
        trainer = Trainer(model, Shuffled(EXAMPLES), settings(tmp_path / f"run{native}"))
        # Repacked, the table is there twice, and what is packed counts.
        assert plan_memory(trainer, 16).weights > 0.9 * path.stat().st_size
        curves.append([trainer.train_step()[0]["loss"] for _ in range(20)])
        assert all(p.grad is None for p in model.parameters())
    assert curves[0][0] == pytest.approx(curves[1][0], rel=0.02)
    assert curves[0][-1] < 0.6 * curves[0][0]


def test_layers_are_fused_again_behind_it(tmp_path: Path) -> None:
    path = write_tiny_gguf(tiny_model(1, canvas_length=8, **SIZES), tmp_path / "m.gguf", "Q4_K_M")
    assert all(isinstance(layer, FusedTextLayer) for layer in load_quantised(path).model.layers)
