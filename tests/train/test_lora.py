"""Low-rank changes of a frozen model: what moves, and that it goes on from a checkpoint to the bit."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.errors import UsageError
from canvaslm.ops.lora import adapted_experts, low_rank
from canvaslm.train.data import Shuffled, TrainingExample
from canvaslm.train.lora import Lora
from canvaslm.train.report import Reporter
from canvaslm.train.settings import LoraSettings, Settings, settings_from_dict
from canvaslm.train.sft import Trainer
from canvaslm.train.validate import Watch, held_out_figures
from tests.tiny import tiny_model

EVERY = ["attention", "mlp", "experts", "router", "self_conditioning"]
EXAMPLES = [TrainingExample((2, 10 + i % 4, 20, 6), (10 + i % 4,) * 4 + (7,)) for i in range(12)]


def settings(folder: Path, **lora: Any) -> Settings:
    return settings_from_dict(
        {
            "run": {"folder": str(folder), "steps": 6, "checkpoint_every": 3, "log_every": 2, "keep": 9},
            "model": {"base": "unused"},
            "data": {"source": "unused", "batch": 6, "micro_batch": 3},
            "optim": {"lr": 2e-2, "warmup": 1},
            "lora": {"rank": 3, **lora},
        }
    )


def trainer(folder: Path, **lora: Any) -> Trainer:
    return Trainer(tiny_model(1), Shuffled(EXAMPLES), settings(folder, **lora))


def quiet() -> Reporter:
    return Reporter(None, io.StringIO())


@pytest.mark.parametrize("phases", ["both", "denoise"])
def test_only_targets_move_and_all_of_them_do(tmp_path: Path, phases: str) -> None:
    made = trainer(tmp_path, targets=EVERY, phases=phases)
    base = {name: p.clone() for name, p in made.model.named_parameters()}
    before = {name: p.clone() for name, p in made.trained.named_parameters()}
    for _ in range(2):
        made.train_step()
    assert all(torch.equal(base[name], p) for name, p in made.model.named_parameters())
    still = [name for name, p in made.trained.named_parameters() if torch.equal(before[name], p)]
    assert still == []
    assert isinstance(made.trained, Lora)
    assert set(made.trained.adapter().denoise) == set(made.model.adaptable())
    assert bool(made.trained.adapter().encode) == (phases == "both")
    assert made.trained.adapter().has_equal_sides == (phases == "both")


def test_the_first_step_is_the_base_s(tmp_path: Path) -> None:
    adapted, plain = trainer(tmp_path), Trainer(tiny_model(1), Shuffled(EXAMPLES), settings(tmp_path, rank=0))
    batch = plain.batcher.step(0)[0]
    draws = plain.objective.draw(batch, 0, 0, 0)
    one, other = (made.objective.terms(batch, draws) for made in (adapted, plain))
    torch.testing.assert_close(one.canvas, other.canvas, rtol=1e-6, atol=0)
    torch.testing.assert_close(one.encoder, other.encoder, rtol=1e-6, atol=0)


def test_it_learns_and_the_held_out_loss_says_so(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    before = held_out_figures(made, EXAMPLES)
    assert held_out_figures(made, EXAMPLES) == before  # always the same draws
    for _ in range(12):
        made.train_step()
    assert held_out_figures(made, EXAMPLES)["loss"] < 0.7 * before["loss"]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run(quiet())
    part = trainer(tmp_path / "part")
    assert part.resume(tmp_path / "whole" / "step-00000003")
    part.run(quiet())
    for name, value in whole.trained.state_dict().items():
        assert torch.equal(value, part.trained.state_dict()[name]), name
    saved = tmp_path / "whole" / "step-00000003" / "model.safetensors"
    assert saved.stat().st_size < 4 * whole.trained.parameter_count + 20_000


def test_the_best_is_kept_and_patience_ends_a_run(tmp_path: Path) -> None:
    made, kept = trainer(tmp_path), list[int]()
    watch = Watch(
        EXAMPLES, every=1, patience=2, file=tmp_path / "best.json", keep=lambda: kept.append(made.step)
    )
    made.optimizers.step = lambda factor: made.optimizers.parts[0][0].zero_grad()  # type: ignore[method-assign]
    assert made.run(quiet(), after=watch) == "nothing better for 2 measurements"
    assert (made.step, kept) == (3, [1])
    again = Watch(EXAMPLES, every=1, patience=2, file=tmp_path / "best.json", keep=lambda: None)
    again.resume(3)
    assert again.best == watch.best
    again.resume(1)  # killed after step 3, with a checkpoint of step 1: steps 2 and 3 are measured again
    assert (again.best.step, again.best.since) == (1, 0)


def test_gradients_of_changes_and_of_routing_weights() -> None:
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    x, a, b = random(2, 5, 4), random(3, 4), random(6, 3)
    assert torch.autograd.gradcheck(lambda *t: low_rank(t[0], t[1], t[2], 0.7), (x, a, b))
    count, hidden, inner = 3, 4, 5
    gate_up, down = random(count, 2 * inner, hidden).detach(), random(count, hidden, inner).detach()
    index = torch.tensor([[0, 2], [2, 1], [1, 0]])
    tensors = (random(3, hidden), random(3, 2), random(count, 2, hidden), random(count, 2 * inner, 2))

    def run(x: torch.Tensor, weights: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        def product(matrix: torch.Tensor) -> Any:
            return lambda expert, rows: rows @ matrix[expert].T

        return adapted_experts(x, index, weights, product(gate_up), product(down), [(a, b, 1.5)], [])

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("rank", [3, 0])
def test_recomputing_layers_changes_no_bit_of_a_gradient(tmp_path: Path, rank: int) -> None:
    gradients = []
    for recompute in (False, True):
        chosen = settings(tmp_path, rank=rank, targets=EVERY)
        chosen = replace(chosen, run=replace(chosen.run, recompute=recompute))
        made = Trainer(tiny_model(1), Shuffled(EXAMPLES), chosen)
        batch = made.batcher.step(0)[0]
        terms = made.objective.terms(batch, made.objective.draw(batch, 0, 0, 0))
        made.objective.loss(terms, batch.canvas_count, batch.encoder_count).backward()
        named = made.trained.named_parameters()
        gradients.append({name: p.grad for name, p in named if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_what_cannot_be_trained_is_refused() -> None:
    model = tiny_model(1)
    with pytest.raises(UsageError, match="'heads' is not one of attention, mlp"):
        Lora(model, LoraSettings(rank=2, targets=["heads"]))
    with pytest.raises(UsageError, match="at least one"):
        Lora(model, LoraSettings(rank=2, targets=[]))
    with pytest.raises(UsageError, match=r"lora.phases: 'canvas' is not one of both, denoise"):
        settings(Path("x"), phases="canvas")


def test_training_goes_on_from_an_adapter(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train_step()
    assert isinstance(made.trained, Lora)
    other = Lora(tiny_model(1), LoraSettings(rank=3, alpha=8.0), seed=5)
    other.start_from(made.trained.adapter())
    for name, delta in made.trained.adapter().denoise.items():
        torch.testing.assert_close(other.adapter().denoise[name].matrix(), delta.matrix())
    with pytest.raises(UsageError, match="of rank 4"):
        Lora(tiny_model(1), LoraSettings(rank=4)).start_from(made.trained.adapter())


def test_a_phase_uses_its_side(tmp_path: Path) -> None:
    made = trainer(tmp_path, phases="denoise")
    lora = made.trained
    assert isinstance(lora, Lora)
    with lora.phase("encode"):
        assert list(lora.switch.spans) == []
    with lora.phase("denoise"):
        spans = list(lora.switch.spans)
    assert [span.stop for span in spans] == [None]
    assert list(lora.switch.spans) == []
