"""What `--self-conditioning auto` leaves out of the soft embedding, and what that does to the step after it.

The demo model in Q8_0, on native kernels. Between two products with activations rounded to int8 no difference
stays small: a change of one millionth, too, makes some values round the other way, and a router choose
another expert. What skipping does by itself is therefore measured on the same weights in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.demo.tasks import TASKS
from canvaslm.diffusion import Canvas, RowParams, advance, progress, start_canvas, temperature
from canvaslm.evals.demo import heldout_items
from canvaslm.model import Model, PlainContext
from canvaslm.ops import cpu
from canvaslm.ops.predict import Prediction, draws_of, predict
from canvaslm.session import load
from canvaslm.types import Params
from canvaslm.weights.gguf.quantize import write_gguf
from canvaslm.weights.gguf.source import open_source
from canvaslm.weights.loading.load import load_model

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")

PARAMS = Params(max_denoising_steps=48)


@dataclass
class Place:
    """One model's view of a conversation: its context, where the canvas stands."""

    model: Model
    context: PlainContext
    positions: torch.Tensor

    @classmethod
    def after(cls, model: Model, tokens: tuple[int, ...]) -> Place:
        context, length = PlainContext(model.config), len(tokens)
        model.encode(torch.tensor([tokens]), torch.arange(length)[None], context)
        return cls(model, context, length + torch.arange(model.config.canvas_length)[None])

    def hidden(self, tokens: torch.Tensor, soft: torch.Tensor | None) -> torch.Tensor:
        return self.model.denoise(tokens, self.positions, self.context, soft)

    def logits(self, tokens: torch.Tensor, soft: torch.Tensor | None, table: torch.Tensor) -> torch.Tensor:
        cap = self.model.config.softcap
        return torch.tanh(F.linear(self.hidden(tokens, soft)[0], table) / cap) * cap


@dataclass
class Moved:
    """Of one step: the largest relative change of a place's soft embedding, and changes of the next step's
    logits (root mean square): by skipping in fp32 and with int8 activations, and there by a relative
    change of 1e-6 at random.
    """

    soft: float
    fp32: float
    int8: float
    shaken: float


def rms(x: torch.Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


def said(model: Model, hidden: torch.Tensor, canvas: Canvas, exact: bool) -> Prediction:
    config = model.config
    draws = draws_of(canvas.key, canvas.step, config.canvas_length, config.vocab_size)
    return predict(
        hidden, model.head, model.embedding, softcap=config.softcap, exact=exact, draws=draws,
        temperature=[temperature(PARAMS, int(canvas.step))],
    )  # fmt: skip


def trajectory(packed: Model, whole: Model, tokens: tuple[int, ...], seed: int) -> Iterator[Moved]:
    """The steps of one canvas, always going on with the exact soft embedding."""
    config, here, there = packed.config, Place.after(packed, tokens), Place.after(whole, tokens)
    table = packed.head.tile(0, config.vocab_size)
    canvas = start_canvas(seed, 0, config.canvas_length, config.vocab_size)
    hidden, random = here.hidden(canvas.tokens, None), torch.Generator().manual_seed(seed)
    while True:
        exact, auto = (said(packed, hidden, canvas, exact) for exact in (True, False))
        assert exact.soft is not None
        assert auto.soft is not None
        canvas = advance(canvas, exact, RowParams.of(PARAMS), config.vocab_size)
        if progress(canvas)[0].stop is not None:
            return
        shaken = exact.soft * (1 + 1e-6 * torch.randn(exact.soft.shape, generator=random))
        softs = (exact.soft, auto.soft, shaken)
        true, skipped, _ = (there.logits(canvas.tokens, soft, table) for soft in softs)
        mine, mine_skipped, mine_shaken = (here.logits(canvas.tokens, soft, table) for soft in softs)
        change = (auto.soft - exact.soft)[0].norm(dim=-1) / exact.soft[0].norm(dim=-1)
        yield Moved(
            float(change.max()), rms(skipped - true), rms(mine_skipped - mine), rms(mine_shaken - mine)
        )
        hidden = here.hidden(canvas.tokens, exact.soft)


@torch.inference_mode()
def test_skipping_moves_the_next_step_by_less_than_a_thousandth(tmp_path: Path) -> None:
    path = tmp_path / "demo-Q8_0.gguf"
    write_gguf(open_source(MODEL_FOLDER), path, "Q8_0")
    session, whole = load(path), load_model(path, dtype="float32").model
    items = [item for name in ("sudoku", "json", "long") for item in heldout_items(TASKS[name], 3, 0)]
    moved = []
    for seed, item in enumerate(items):
        tokens = session.prepare(item.messages, seed=seed).tokens
        moved += list(trajectory(session.engine.runner.model, whole, tokens, seed))
    assert len(moved) > 15
    assert max(m.soft for m in moved) < 1e-3  # everywhere
    fp32 = torch.tensor([m.fp32 for m in moved])
    assert fp32.median() < 4e-4
    assert (fp32 < 1e-3).float().mean() >= 0.9  # the rest: a router with two experts as good as each other
    by_skipping, by_shaking = (
        torch.tensor([getattr(m, name) for m in moved]).mean() for name in ("int8", "shaken")
    )
    assert by_skipping < 2 * by_shaking
