"""The training loss of a block-diffusion model.

Per row: a time t, a block corrupted by uniform replacement, one causal encoder pass over prompt and answer, and a
denoise pass over the block against the keys and values *strictly before* it. Half of the rows first run a denoise
pass without gradient whose softmax conditions the second. The loss is the mean cross-entropy over all places of
the blocks, corrupted or not and without a 1/t weight, plus the encoder's next-token cross-entropy over the response.
Source: Google's `gemma/diffusion/hackable_diffusion_adapter`, TRL's `sft_diffusion_gemma.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.context import PlainContext
from ..model.diffusion_gemma import DiffusionGemma
from ..ops.grouped import experts_sorted
from .data import IGNORE, Batch
from .settings import ObjectiveSettings


@dataclass(frozen=True)
class Draws:
    """All randomness of one micro-batch: t [B] fp32, canvas [B, C] int64 (corrupted), coin [B] bool (conditioned)."""

    t: Tensor
    canvas: Tensor
    coin: Tensor


@dataclass(frozen=True)
class Terms:
    """Sums of cross-entropy in nats (fp32 scalars with gradient), the auxiliary loss, and a diagnostic.

    `wrong` counts the supervised places whose most probable token is not the right one.
    """

    canvas: Tensor
    encoder: Tensor
    aux: Tensor
    wrong: Tensor


class TrainingContext(PlainContext):
    """Attention in fp32, also under autocast: on CPU the bf16 backward of fused attention is three times slower."""

    def encode_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return super().encode_attention(layer, q.float(), k.float(), v.float(), positions)

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return super().denoise_attention(layer, q.float(), k.float(), v.float(), positions)


def generator(seed: int, step: int, micro: int) -> torch.Generator:
    """The random stream of one micro-batch, the same on every run and resume."""
    digest = hashlib.blake2b(f"noise/{seed}/{step}/{micro}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def corrupt(clean: Tensor, t: Tensor, vocab_size: int, random: torch.Generator) -> Tensor:
    """Replaces each place of clean [B, C] with probability t [B] by a uniform token of the whole vocabulary.

    The new token may equal the old one; there is no mask token.
    """
    replaced = torch.rand(clean.shape, generator=random) < t[:, None]
    noise = torch.randint(vocab_size, clean.shape, generator=random)
    return torch.where(replaced, noise, clean)


def draw(clean: Tensor, vocab_size: int, settings: ObjectiveSettings, random: torch.Generator) -> Draws:
    """Draws time, noise and coin of every row of clean [B, C]."""
    rows = clean.shape[0]
    t = torch.rand(rows, generator=random) * (1 - settings.t_min) + settings.t_min
    canvas = corrupt(clean, t, vocab_size, random)
    coin = torch.rand(rows, generator=random) < settings.self_conditioning
    return Draws(t, canvas, coin)


def encoder_terms(model: DiffusionGemma, batch: Batch, aux: bool) -> tuple[Tensor, Tensor, PlainContext]:
    """Encodes the batch: (sum of next-token cross-entropy, auxiliary loss, context)."""
    context, log = TrainingContext(model.config), [] if aux else None
    hidden = model.encode(batch.tokens, batch.positions, context, hidden=True, router_log=log)
    if hidden is None:
        raise RuntimeError("encode returned no states although hidden=True")
    places = batch.encoder_places[..., None].expand(-1, -1, hidden.shape[-1])
    logits = model.logits(hidden.gather(1, places))
    loss = F.cross_entropy(
        logits.flatten(0, 1), batch.encoder_targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return loss, _balance(model, log, (batch.positions >= 0).flatten()), context


def first_guess(model: DiffusionGemma, canvas: Tensor, positions: Tensor, context: PlainContext) -> Tensor:
    """Pass 1: the soft embedding [B, C, H] of a denoise pass without self-conditioning, at T = 1."""
    hidden = model.denoise(canvas, positions, context)
    return model.soft_embedding(model.logits(hidden).softmax(-1))


def canvas_terms(
    model: DiffusionGemma, batch: Batch, canvas: Tensor, soft: Tensor | None, context: PlainContext, aux: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pass 2: (sum of cross-entropy over supervised places, auxiliary loss, wrong places)."""
    log = [] if aux else None
    hidden = model.denoise(canvas, batch.canvas_positions, context, soft, router_log=log)
    logits = model.logits(hidden)
    each = F.cross_entropy(logits.flatten(0, 1), batch.clean.flatten(), reduction="none").view_as(batch.clean)
    wrong = ((logits.argmax(-1) != batch.clean) & batch.supervised).sum()
    loss = torch.where(batch.supervised, each, 0.0).sum()
    return loss, _balance(model, log, batch.supervised.any(1).repeat_interleave(canvas.shape[1])), wrong


def subset(context: PlainContext, rows: Tensor) -> PlainContext:
    """The context of some rows of a batch."""
    part = type(context)(context.config)
    for layer in context.keys:
        part.append(
            layer, context.keys[layer][rows], context.values[layer][rows], context.positions[layer][rows]
        )
    return part


def _balance(model: DiffusionGemma, log: list[Any] | None, real: Tensor) -> Tensor:
    """Switch load balancing, mean over layers: E * sum_e (share of choices) * (mean probability).

    1 when balanced. Only `real` [T] tokens count. Source: Fedus et al. 2021, eq. 4, with top-k choices as shares.
    """
    if not log:
        return torch.zeros((), device=real.device)
    weight = real.float() / real.sum().clamp(min=1)
    total = torch.zeros((), device=real.device)
    for probabilities, index in log:
        chosen = F.one_hot(index, probabilities.shape[1]).sum(1).float() / index.shape[1]
        total = total + ((weight @ chosen) * (weight @ probabilities.float())).sum() * probabilities.shape[1]
    return total / len(log)


class Objective:
    """Computes the terms of a micro-batch."""

    def __init__(self, model: DiffusionGemma, settings: ObjectiveSettings) -> None:
        self.model, self.settings = model, settings
        for layer in model.layers:
            layer.experts.compute = experts_sorted
        for name, parameter in model.named_parameters():
            if ".router." in name:
                parameter.requires_grad_(not settings.freeze_router)

    def draw(self, batch: Batch, seed: int, step: int, micro: int) -> Draws:
        """The draws of a micro-batch, on its device."""
        random = generator(seed, step, micro)
        draws = draw(batch.clean.cpu(), self.model.config.vocab_size, self.settings, random)
        device = batch.clean.device
        return Draws(draws.t.to(device), draws.canvas.to(device), draws.coin.to(device))

    def terms(self, batch: Batch, draws: Draws) -> Terms:
        """Sums over the micro-batch; see `Terms`."""
        aux = self.settings.aux_weight > 0
        encoder, aux_encoder, context = encoder_terms(self.model, batch, aux)
        soft = self._soft(batch, draws, context)
        canvas, aux_canvas, wrong = canvas_terms(self.model, batch, draws.canvas, soft, context, aux)
        return Terms(canvas, encoder, (aux_encoder + aux_canvas) / 2, wrong)

    def _soft(self, batch: Batch, draws: Draws, context: PlainContext) -> Tensor | None:
        """Soft embeddings: of pass 1 where the coin says so, zero elsewhere. Only those rows are computed."""
        if self.settings.self_conditioning == 0:
            return None
        hidden = self.model.config.hidden_size
        soft = torch.zeros(
            *batch.clean.shape, hidden, device=batch.clean.device, dtype=self.model.embed_tokens.weight.dtype
        )
        rows = draws.coin.nonzero()[:, 0]
        if len(rows):
            with torch.no_grad():
                part = subset(context, rows)
                guess = first_guess(self.model, draws.canvas[rows], batch.canvas_positions[rows], part)
                soft[rows] = guess.to(soft.dtype)
        return soft

    def loss(self, terms: Terms, canvas_count: int, encoder_count: int, share: float = 1.0) -> Tensor:
        """The scalar to differentiate: means over the whole step's counts; `share` of the step's auxiliary loss."""
        loss = terms.canvas / max(canvas_count, 1)
        if self.settings.encoder_weight:
            loss = loss + self.settings.encoder_weight * terms.encoder / max(encoder_count, 1)
        return loss + self.settings.aux_weight * share * terms.aux


__all__ = [
    "Draws",
    "Objective",
    "Terms",
    "TrainingContext",
    "canvas_terms",
    "corrupt",
    "draw",
    "encoder_terms",
    "first_guess",
    "generator",
    "subset",
]
