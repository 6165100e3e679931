"""Gradients through weights that stay quantised, and a loss that never holds its logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from canvaslm.ops import backend, plain
from canvaslm.ops.experts import experts_grouped
from canvaslm.ops.formats.quant_tensor import QuantTensor, quantise
from canvaslm.ops.frozen import frozen_product
from canvaslm.ops.head_loss import head_loss
from canvaslm.ops.quantised import QuantExperts, QuantLinear, QuantVocabulary
from canvaslm.train import objective
from canvaslm.train.data import IGNORE, Shuffled, TrainingExample
from canvaslm.train.objective import head_in_tiles, soft_guess, token_losses
from canvaslm.train.settings import settings_from_dict
from canvaslm.train.sft import Trainer
from canvaslm.weights.gguf.load import load_quantised
from tests.tiny import tiny_model, write_tiny_gguf

V, H = 90, 32


def packed(format: str, *shape: int) -> QuantTensor:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.1
    return QuantTensor(format, shape, quantise(format, weight.view(-1, shape[-1])).flatten())


@pytest.mark.parametrize("format", ["Q4_K", "Q8_0"])
def test_what_flows_back_is_that_of_the_unpacked_weight(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.ops.frozen.SLICE_VALUES", 256 * 16)  # several slices
    weight = packed(format, 70, 256)
    x = torch.randn(2, 5, 256, requires_grad=True)
    outer = torch.randn(2, 5, 70)
    for run in (lambda: frozen_product(x, weight), lambda: QuantLinear(weight)(x)):
        (got,) = torch.autograd.grad((run() * outer).sum(), x)
        (want,) = torch.autograd.grad((F.linear(x, weight.dequantise()) * outer).sum(), x)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_experts_give_gradients_to_inputs_and_routing_weights() -> None:
    gate_up, down = packed("Q8_0", 4, 2 * 32, 64), packed("Q8_0", 4, 64, 32)
    x, weights = torch.randn(6, 64, requires_grad=True), torch.rand(6, 2, requires_grad=True)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(6)])
    outer = torch.randn(6, 64)
    got = torch.autograd.grad((QuantExperts((gate_up,), down)(x, index, weights) * outer).sum(), (x, weights))
    plain_out = experts_grouped(x, index, weights, gate_up.dequantise(), down.dequantise())
    want = torch.autograd.grad((plain_out * outer).sum(), (x, weights))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_nothing_unpacked_is_kept_for_the_way_back() -> None:
    gate, up, down = packed("Q8_0", 4, 96, 64), packed("Q8_0", 4, 96, 64), packed("Q8_0", 4, 64, 96)
    x, weights = torch.randn(6, 64, requires_grad=True), torch.rand(6, 2, requires_grad=True)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(6)])
    kept: list[tuple[int, ...]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        QuantExperts((gate, up), down)(x, index, weights)
        QuantLinear(packed("Q8_0", 70, 64))(x)
    assert kept  # inputs of the activation
    matrices = [(96, 64), (64, 96), (70, 64), (64, 70)]
    assert not [shape for shape in kept if shape in matrices]


@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_the_loss_by_tiles_is_cross_entropy(cap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.ops.head_loss.TILE", 32)
    head, hidden = torch.randn(V, H), torch.randn(7, H, requires_grad=True)
    targets = torch.tensor([3, -100, 89, 31, 32, 0, -100])
    logits = hidden @ head.T
    logits = torch.tanh(logits / cap) * cap if cap else logits
    outer = torch.rand(7)
    for rows in (head, lambda start, stop: head[start:stop]):
        losses, best = head_loss(hidden, targets, rows, V, cap=cap, ignore=-100)
        want = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
        torch.testing.assert_close(losses, want, rtol=1e-5, atol=1e-5)
        assert torch.equal(best, logits.argmax(-1))
        (got,) = torch.autograd.grad((losses * outer).sum(), hidden)
        (back,) = torch.autograd.grad((want * outer).sum(), hidden, retain_graph=True)
        torch.testing.assert_close(got, back, rtol=1e-5, atol=1e-5)


def settings(folder: Path, **run: object) -> object:
    return settings_from_dict(
        {
            "run": {"folder": str(folder), "steps": 30, **run}, "model": {"base": "unused"},
            "data": {"source": "unused", "batch": 4}, "optim": {"lr": 2e-2, "warmup": 1},
            "lora": {"rank": 4, "targets": ["attention", "mlp", "experts"]},
        }
    )  # fmt: skip


def test_autocast_changes_nothing_of_either() -> None:
    weight, head = packed("Q8_0", 40, 64), torch.randn(V, 64)
    targets = torch.tensor([1, 50, 7])

    def run() -> torch.Tensor:
        losses, _ = head_loss(x, targets, head, V, cap=3.0, ignore=-100)
        return losses.sum() + frozen_product(x, weight).square().sum()

    x = torch.randn(3, 64, requires_grad=True)
    plain_run = run()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run()
    assert torch.equal(plain_run, mixed)
    (one,), (other,) = (torch.autograd.grad(made, x) for made in (plain_run, mixed))
    assert torch.equal(one, other)


EXAMPLES = [TrainingExample((2, 10 + i % 4, 20, 6), (10 + i % 4,) * 4 + (7,)) for i in range(12)]


def test_a_large_frozen_head_gives_the_loss_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    for many in (10**9, 1):
        monkeypatch.setattr(objective, "MANY_TOKENS", many)
        made = Trainer(tiny_model(1), Shuffled(EXAMPLES), settings(tmp_path))  # type: ignore[arg-type]
        assert head_in_tiles(made.model) == (many == 1)
        figures.append([made.train_step()[0] for _ in range(3)])
    for one, other in zip(*figures, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("format", ["Q8_0", "Q4_K"])
def test_losses_and_guesses_of_a_quantised_head_are_those_of_the_unpacked_one(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canvaslm.ops.head_loss.TILE", 32)  # three tiles
    model = tiny_model(2, vocab_size=V, hidden_size=256)
    table = packed(format, V, 256)
    model.embed_tokens.weight = torch.nn.Parameter(table.dequantise(), requires_grad=False)
    hidden = torch.randn(2, 4, 256, requires_grad=True)
    targets = torch.tensor([[0, 31, IGNORE, 32], [V - 1, IGNORE, 63, 64]])
    outer, found = torch.rand(8), []
    for head in (model.embed_tokens, QuantVocabulary(table)):
        model.embed_tokens = head
        assert head_in_tiles(model) == isinstance(head, QuantVocabulary)
        losses, likeliest = token_losses(model, hidden, targets)
        (back,) = torch.autograd.grad((losses * outer).sum(), hidden)
        with torch.no_grad():
            found.append((losses, back, soft_guess(model, hidden), likeliest))
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)


def test_a_quantised_base_is_trained_as_it_lies(tmp_path: Path) -> None:
    sizes = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256}
    path = write_tiny_gguf(tiny_model(1, canvas_length=8, **sizes), tmp_path / "m.gguf", "Q4_K_M")
    with backend.only(plain.BACKEND):
        model = load_quantised(path).model
    assert isinstance(model.layers[0].self_attn.q_proj, QuantLinear)
    made = Trainer(model, Shuffled(EXAMPLES), settings(tmp_path / "run"))  # type: ignore[arg-type]
    figures = [made.train_step()[0] for _ in range(20)]
    assert figures[-1]["loss"] < 0.6 * figures[0]["loss"]
    assert all(p.grad is None for p in model.parameters())
