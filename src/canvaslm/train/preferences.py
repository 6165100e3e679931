"""Training on preferences: of two answers to a prompt, the better one.

Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290), where what a model makes of an answer
is not its log-likelihood, which a diffusion model cannot say, but minus its training loss (Wallace et al.
2023, arXiv:2311.12908; for diffusion language models VRPO, Zhu et al. 2025, arXiv:2505.19223):

    loss = -log sigmoid(beta * margin)        margin = gain(chosen) - gain(rejected)
    gain(answer) = L(answer; the base) - L(answer; the base with the adapter)

L is the cross-entropy of one block on its canvas: the mean over the supervised places, times the places of a
canvas. Where all of them are supervised, as everywhere but in an answer that was cut, that is their sum, the
scale of log-likelihoods that beta is used to. It is not multiplied by the answer's number of blocks, as the
likelihood of the whole would be: so would be the noise of its one draw, and long answers would rule.

Both answers and both policies have the same time, coin and noise: what they differ by would drown in what
these draws make of each. The base is the model with the adapter off, so nothing is kept twice. The encoder's
cross-entropy has no part: preferred is what is written on canvases.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.protocol import Model
from .data import Batch
from .objective import Draws, Objective, StepCounts, draw, generator
from .settings import ObjectiveSettings


class Preferences(Objective):
    """Rows 2i and 2i + 1 of a batch are the better and the worse answer of pair i."""

    answers = 2
    held_out: ClassVar = {"loss": "loss", "accuracy": "accuracy", "margin": "margin"}

    def __init__(self, model: Model, settings: ObjectiveSettings) -> None:
        super().__init__(model, settings)
        self.base = Objective(model, settings)
        self.base.phase = self._without
        self.trains_encoder = self.base.trains_encoder = False

    def _without(self, phase: str) -> AbstractContextManager[None]:
        """Inside, no adapter is on."""
        switch = self.model.switch
        return nullcontext() if switch is None else switch.using([])

    def draw(self, batch: Batch, seed: int, step: int, micro: int) -> Draws:
        """The draws of a micro-batch, on its device: those of a pair's answers are the same."""
        sides = [
            draw(
                batch.clean[side::2].cpu(),
                self.model.config.vocab_size,
                self.settings,
                generator(seed, step, micro),
                batch.given[side::2].cpu(),
            )
            for side in (0, 1)
        ]
        device = batch.clean.device

        def both(name: str) -> Tensor:
            return torch.stack([getattr(side, name) for side in sides], 1).flatten(0, 1).to(device)

        return Draws(both("t"), both("canvas"), both("coin"))

    def step(self, batch: Batch, draws: Draws, whole: StepCounts) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the step's loss and figures.

        gains [pairs, 2] and what follows from them are in nats of a block; "canvas" is the better answer's
        cross-entropy in nats per place, under the adapter.
        """
        with torch.no_grad():
            base = _losses(self.base, batch, draws)
        adapted = _losses(self, batch, draws)
        real, share = batch.supervised.any(1).view(-1, 2).all(1), 2 / max(whole.rows, 1)
        gains = (base - adapted).view(-1, 2)[real]
        own = adapted.view(-1, 2)[real, 0] / batch.clean.shape[1]
        margins = gains[:, 0] - gains[:, 1]
        loss = -F.logsigmoid(self.settings.beta * margins) + self.settings.sft_weight * own
        figures = {
            "loss": loss, "margin": margins, "accuracy": (margins > 0).float(),
            "chosen": gains[:, 0], "rejected": gains[:, 1], "canvas": own,
        }  # fmt: skip
        return loss.sum() * share, {name: value.sum() * share for name, value in figures.items()}


def _losses(policy: Objective, batch: Batch, draws: Draws) -> Tensor:
    """L of each row [B], fp32."""
    places = batch.supervised.sum(1).clamp(min=1)
    return policy.terms(batch, draws).rows * (batch.clean.shape[1] / places)


__all__ = ["Preferences"]
