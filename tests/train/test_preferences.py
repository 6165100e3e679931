"""Preferences on a tiny model: the loss by hand, the same draws for all, what is learned, exact resuming."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from canvaslm.errors import UsageError
from canvaslm.model import PlainContext
from canvaslm.train.data import Batch, Batcher, Pair, Shuffled, TrainingExample
from canvaslm.train.lora import Lora
from canvaslm.train.objective import StepCounts
from canvaslm.train.preferences import Preferences
from canvaslm.train.report import Reporter
from canvaslm.train.settings import Settings, settings_from_dict
from canvaslm.train.sft import Trainer
from canvaslm.train.validate import Watch, held_out_figures
from tests.tiny import tiny_model

C, EOS, BETA = 8, 1, 0.3
EVERY = ["attention", "mlp", "experts", "router", "self_conditioning"]


def pair(i: int, better: int = 5, worse: int = 5) -> Pair:
    prompt = (2, 10 + i % 4, 20, 6)
    chosen = (*(30 + (i + place) % 9 for place in range(better)), 7)
    rejected = (*(50 + (i * place) % 9 for place in range(worse)), 7)
    return Pair(TrainingExample(prompt, chosen), TrainingExample(prompt, rejected))


PAIRS = [pair(i, 2 + i % 3, 3 + 9 * (i % 2)) for i in range(12)]


def settings(folder: Path, **changes: Any) -> Settings:
    data: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": 6, "checkpoint_every": 3, "log_every": 2, "keep": 9},
        "model": {"base": "unused"},
        "data": {"source": "unused", "batch": 6, "micro_batch": 3},
        "objective": {"kind": "dpo", "beta": BETA},
        "optim": {"lr": 1e-2, "warmup": 1},
        "lora": {"rank": 3},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        data[section][name] = value
    return settings_from_dict(data)


def trainer(folder: Path, pairs: list[Pair] = PAIRS, **changes: Any) -> Trainer:
    return Trainer(tiny_model(1), Shuffled(pairs), settings(folder, **changes))


def stirred(made: Trainer, size: float = 0.1) -> Trainer:
    """With an adapter that changes something."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in made.trained.named_parameters():
            if name.startswith("up."):
                parameter.copy_(size * torch.randn(parameter.shape, generator=random))
    return made


def one_step(made: Trainer, micro: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and figures of one micro-batch by itself, of step 0."""
    batch = made.batcher.step(0)[micro]
    draws = made.objective.draw(batch, 0, 0, micro)
    loss, figures = made.objective.step(batch, draws, StepCounts.of([batch]))
    return loss, {name: float(value.detach()) for name, value in figures.items()}


def quiet() -> Reporter:
    return Reporter(None, io.StringIO())


def test_of_an_adapter_that_changes_nothing_the_loss_is_log_2(tmp_path: Path) -> None:
    loss, figures = one_step(trainer(tmp_path))
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-6)
    assert figures["margin"] == figures["chosen"] == figures["rejected"] == 0


def nats(made: Trainer, batch: Batch, row: int, canvas: torch.Tensor, coin: bool, adapted: bool) -> float:
    """The sum of cross-entropies of one row's block, plainly."""
    model, lora = made.model, made.trained
    assert isinstance(lora, Lora)
    length = int((batch.positions[row] >= 0).sum())
    context = PlainContext(model.config)
    places = batch.canvas_positions[row : row + 1]
    with torch.no_grad(), lora.phase("denoise") if adapted else lora.switch.using([]):
        model.encode(batch.tokens[row : row + 1, :length], torch.arange(length)[None], context)
        soft = None
        if coin:
            first = model.logits(model.denoise(canvas[None], places, context)).softmax(-1)
            soft = model.soft_embedding(first)
        logits = model.logits(model.denoise(canvas[None], places, context, soft))[0]
    return float(F.cross_entropy(logits, batch.clean[row], reduction="sum"))


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_loss_is_that_of_a_hand_computation(tmp_path: Path, weight: float) -> None:
    made = stirred(trainer(tmp_path, lora__targets=EVERY, objective__sft_weight=weight))
    batch = made.batcher.step(0)[0]
    draws = made.objective.draw(batch, 0, 0, 0)
    assert draws.coin.any()
    assert not draws.coin.all()
    gains = [
        nats(made, batch, row, draws.canvas[row], bool(draws.coin[row]), False)
        - nats(made, batch, row, draws.canvas[row], bool(draws.coin[row]), True)
        for row in range(6)
    ]
    margins = [gains[2 * i] - gains[2 * i + 1] for i in range(3)]
    own = sum(nats(made, batch, 2 * i, draws.canvas[2 * i], bool(draws.coin[2 * i]), True) for i in range(3))
    losses = [math.log(1 + math.exp(-BETA * margin)) for margin in margins]
    loss, figures = one_step(made)
    assert float(loss.detach()) == pytest.approx(sum(losses) / 3 + weight * own / 3 / C, rel=1e-4)
    assert figures["loss"] == pytest.approx(float(loss.detach()))
    assert figures["margin"] == pytest.approx(sum(margins) / 3, rel=1e-3)
    assert figures["chosen"] - figures["rejected"] == pytest.approx(figures["margin"], rel=1e-4)
    assert figures["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 3)
    assert figures["canvas"] == pytest.approx(own / 3 / C, rel=1e-4)
    assert len(set(margins)) == 3


def test_the_gradient_is_that_of_finite_differences(tmp_path: Path) -> None:
    """Along itself. Without the first pass, through which there is no gradient."""
    made = stirred(trainer(tmp_path, data__micro_batch=6, objective__self_conditioning=0.0))
    one_step(made)[0].backward()
    gradients = [(p, p.grad) for p in made.trained.parameters() if p.grad is not None]
    assert len(gradients) == len(list(made.trained.parameters()))
    norm = float(sum((gradient**2).sum() for _, gradient in gradients)) ** 0.5
    step, ends = 2e-4, list[float]()
    with torch.no_grad():
        for far in (step, -2 * step):
            for parameter, gradient in gradients:
                parameter.add_(gradient, alpha=far / norm)
            ends.append(float(one_step(made)[0]))
    assert norm == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.02)


def test_both_answers_have_the_same_time_coin_and_noise(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    batch = made.batcher.step(0)[0]
    draws = made.objective.draw(batch, 0, 0, 0)
    again = trainer(tmp_path, data__batch=3).objective.draw(batch, 0, 0, 0)
    assert torch.equal(draws.canvas, again.canvas)
    assert draws.t.view(3, 2).unique(dim=1).shape == (3, 1)
    assert torch.equal(draws.coin[0::2], draws.coin[1::2])
    assert len(draws.t.unique()) == 3
    changed = draws.canvas != batch.clean
    for place in (changed[0::2] & changed[1::2]).nonzero().tolist():
        assert draws.canvas[0::2][*place] == draws.canvas[1::2][*place]
    kept = ~changed[0::2] & changed[1::2]  # only where the noise is the right token of the better answer
    assert int(kept.sum()) <= 2


def test_blocks_stand_equally_far_down_and_pairs_stay_together() -> None:
    long = pair(0, 3 * C - 1, 6 * C - 1)
    batcher = Batcher(Shuffled([long]), 0, 40, 8, C, EOS, 100, answers=2)
    rows = batcher.rows(0)
    found = {(better.block, worse.block) for better, worse in zip(rows[0::2], rows[1::2], strict=True)}
    assert found == {(worse // 2, worse) for worse in range(6)}
    mixed = Batcher(Shuffled(PAIRS), 0, 12, 5, C, EOS, 100, answers=2)
    batches = mixed.step(0)
    assert [len(batch.tokens) for batch in batches] == [10, 10, 10]
    assert [batch.row_count for batch in batches] == [10, 10, 4]
    for batch in batches:
        assert torch.equal(batch.tokens[0::2, :4], batch.tokens[1::2, :4])
        real = batch.supervised.any(1)
        assert (batch.clean[0::2][real[0::2], 0] < 50).all()
        assert (batch.clean[1::2][real[1::2], 0] != batch.clean[0::2][real[0::2], 0]).any()


def test_a_pair_without_room_for_one_of_its_answers_is_left_out() -> None:
    given = replace(pair(1).rejected, given=(True,) * 6)
    batcher = Batcher(Shuffled([pair(0), replace(pair(1), rejected=given)]), 0, 2, 2, C, EOS, 100, answers=2)
    assert [row.tokens[1] for row in batcher.rows(0)] == [10, 10]
    with pytest.raises(UsageError, match="has no chosen and rejected"):
        Batcher(Shuffled([pair(0).chosen]), 0, 2, 2, C, EOS, 100, answers=2).rows(0)


def test_an_answer_that_was_cut_counts_no_less(tmp_path: Path) -> None:
    """Its fill is not supervised; the mean stands for the whole canvas."""
    short = replace(pair(0).chosen, truncated=True)
    made = stirred(trainer(tmp_path, [replace(pair(0), chosen=short)], data__batch=1, data__micro_batch=1))
    batch = made.batcher.step(0)[0]
    assert batch.supervised.sum(1).tolist() == [6, 8]
    draws = made.objective.draw(batch, 0, 0, 0)
    with torch.no_grad():
        rows = made.objective.terms(batch, draws).rows
    assert one_step(made)[1]["canvas"] == pytest.approx(float(rows[0]) / 6, rel=1e-5)


@pytest.mark.parametrize("phases", ["both", "denoise"])
def test_micro_batches_and_recomputing_change_nothing(tmp_path: Path, phases: str) -> None:
    gradients = []
    for micro, recompute in ((6, False), (6, True), (2, False)):
        changes: dict[str, Any] = {
            "data__micro_batch": micro,
            "run__recompute": recompute,
            "lora__phases": phases,
        }
        made = stirred(trainer(tmp_path, lora__targets=EVERY, **changes))
        batches = made.batcher.step(0)
        whole = made.batcher.step(0) if micro == 6 else trainer(tmp_path, data__micro_batch=6).batcher.step(0)
        draws = made.objective.draw(whole[0], 0, 0, 0)
        for i, batch in enumerate(batches):
            part = slice(2 * micro * i, 2 * micro * (i + 1))
            its = type(draws)(draws.t[part], draws.canvas[part], draws.coin[part])
            made.objective.step(batch, its, StepCounts.of(batches))[0].backward()
        gradients.append({name: p.grad for name, p in made.trained.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name  # type: ignore[arg-type]
        torch.testing.assert_close(gradient, gradients[2][name], atol=1e-6, rtol=1e-3, msg=name)


def test_a_few_steps_prefer_what_is_better_and_the_base_stays(tmp_path: Path) -> None:
    made = trainer(tmp_path, [pair(0)], data__batch=2, data__micro_batch=2)
    base = {name: p.clone() for name, p in made.model.named_parameters()}
    before = held_out_figures(made, [pair(0)])
    assert before == pytest.approx({"loss": math.log(2), "accuracy": 0, "margin": 0}, abs=1e-6)
    for _ in range(8):
        figures, tokens, examples = made.train_step()
    assert examples == 2
    assert tokens > 0
    assert figures["margin"] > 0.5
    assert figures["accuracy"] == 1
    after = held_out_figures(made, [pair(0)])
    assert after == held_out_figures(made, [pair(0)])
    assert after["margin"] > 0.5
    assert after["loss"] < before["loss"] - 0.05
    assert all(torch.equal(base[name], p) for name, p in made.model.named_parameters())


def test_a_resumed_run_ends_with_the_same_bits_and_the_best_is_kept(tmp_path: Path) -> None:
    kept = list[int]()
    whole = trainer(tmp_path / "whole")
    watch = Watch(
        PAIRS[:3], every=1, patience=0, file=tmp_path / "best.json", keep=lambda: kept.append(whole.step)
    )
    out = io.StringIO()
    with Reporter(tmp_path / "metrics.jsonl", out) as reporter:
        whole.run(reporter, after=watch)
    assert kept[0] == 1
    assert watch.best.step == kept[-1]
    assert "held out: loss " in out.getvalue()
    assert "accuracy" in out.getvalue()
    part = trainer(tmp_path / "part")
    assert part.resume(tmp_path / "whole" / "step-00000003")
    part.run(quiet())
    for name, value in whole.trained.state_dict().items():
        assert torch.equal(value, part.trained.state_dict()[name]), name


def test_an_adapter_to_go_on_from_is_compared_with_the_base(tmp_path: Path) -> None:
    made = stirred(trainer(tmp_path))
    assert isinstance(made.trained, Lora)
    other = trainer(tmp_path)
    assert isinstance(other.trained, Lora)
    other.trained.start_from(made.trained.adapter())
    assert one_step(other)[1]["margin"] == pytest.approx(one_step(made)[1]["margin"], rel=1e-4)
    assert one_step(other)[1]["margin"] != 0


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lora.rank: objective.kind = dpo compares an adapter"):
        settings(tmp_path, lora__rank=0)
    with pytest.raises(UsageError, match=r"objective.kind: 'ppo' is not one of sft, dpo"):
        settings(tmp_path, objective__kind="ppo")
    with pytest.raises(UsageError, match=r"objective.beta: 0.0 is not in"):
        settings(tmp_path, objective__beta=0)
    assert isinstance(trainer(tmp_path).objective, Preferences)
