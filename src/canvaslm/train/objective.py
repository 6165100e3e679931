"""The training loss of a block-diffusion model.

Per row: a time t, a block corrupted by uniform replacement, one causal encoder pass over prompt and answer,
and a denoise pass over the block against the keys and values *strictly before* it. Half of the rows first run
a denoise pass without gradient whose softmax conditions the second. The loss is the mean cross-entropy over
all places of the blocks, corrupted or not and without a 1/t weight, plus the encoder's next-token
cross-entropy over the response. Places that are given (see `data`) stay clean on the canvas and have no loss,
as when a hole is filled. Source: Google's `gemma/diffusion/hackable_diffusion_adapter`, TRL's
trainer for the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.context import PlainContext
from ..model.protocol import Model
from ..ops.grouped import experts_sorted
from ..ops.head_loss import Rows, head_loss
from ..ops.predict import Table, predict
from ..ops.predict import draw as draw_tokens
from .data import IGNORE, Batch
from .settings import ObjectiveSettings


@dataclass(frozen=True)
class Draws:
    """All randomness of one micro-batch: t [B] fp32, canvas [B, C] int64 (corrupted),
    coin [B] bool (conditioned)."""

    t: Tensor
    canvas: Tensor
    coin: Tensor


@dataclass(frozen=True)
class Terms:
    """Sums of cross-entropy in nats (fp32 scalars with gradient), the auxiliary loss, and a diagnostic.

    `wrong` counts the supervised places whose most probable token is not the right one; `rows` [B] is the
    canvas's sum of each row.
    """

    canvas: Tensor
    encoder: Tensor
    aux: Tensor
    wrong: Tensor
    rows: Tensor


@dataclass(frozen=True)
class StepCounts:
    """What a step's means are taken over: supervised places of canvases and tokens of the encoder, rows,
    micro-batches."""

    canvas: int
    encoder: int
    rows: int
    batches: int

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> StepCounts:
        each = [(batch.canvas_count, batch.encoder_count, batch.row_count, 1) for batch in batches]
        return cls(*(sum(counts) for counts in zip(*each, strict=True)))


class TrainingContext(PlainContext):
    """Attention in fp32, also under autocast: on CPU the bf16 backward of fused
    attention is three times slower."""

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


def draw(
    clean: Tensor,
    vocab_size: int,
    settings: ObjectiveSettings,
    random: torch.Generator,
    given: Tensor | None = None,
) -> Draws:
    """Draws time, noise and coin of every row of clean [B, C]. Places `given` [B, C] bool keep their tokens;
    the draws of the others are the same with and without them."""
    rows = clean.shape[0]
    t = torch.rand(rows, generator=random) * (1 - settings.t_min) + settings.t_min
    canvas = corrupt(clean, t, vocab_size, random)
    canvas = canvas if given is None else torch.where(given, clean, canvas)
    coin = torch.rand(rows, generator=random) < settings.self_conditioning
    return Draws(t, canvas, coin)


# Logits of fewer tokens are made at once.
MANY_TOKENS = 32_768


def token_losses(model: Model, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy [N] in fp32 (0 where the target is IGNORE) and the most probable token [N].

    hidden [B, L, H], targets [B, L] int64; N = B * L.
    """
    if head_in_tiles(model):
        states, cap = hidden.flatten(0, 1), model.config.softcap or 0.0
        rows, vocabulary = _rows(model.head), model.config.vocab_size
        return head_loss(states, targets.flatten(), rows, vocabulary, cap=cap, ignore=IGNORE)
    logits = model.logits(hidden).flatten(0, 1)
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses, logits.argmax(-1)


def soft_guess(model: Model, hidden: Tensor) -> Tensor:
    """The soft embedding [B, C, H] of the prediction from hidden [B, C, H] at T = 1."""
    if head_in_tiles(model):
        return _predicted(model, hidden.float()).to(hidden.dtype)
    return model.soft_embedding(model.logits(hidden).softmax(-1))


@torch.no_grad()
def _predicted(model: Model, hidden: Tensor) -> Tensor:
    """As a denoising step makes it, by the head's kernel if it has one."""
    (rows, places), vocabulary = hidden.shape[:2], model.config.vocab_size
    unused = draw_tokens(0, 0, 0, places, vocabulary, hidden.device)  # what is sampled is not read
    made = predict(
        hidden, model.head, model.embedding, softcap=model.config.softcap or 0.0, temperature=[1.0] * rows,
        draws=[unused] * rows,
    )  # fmt: skip
    assert made.soft is not None
    return made.soft


def head_in_tiles(model: Model) -> bool:
    """Whether logits are made a tile at a time: of a frozen head that is quantised, or large."""
    head = model.head
    if not isinstance(head, Tensor):
        return True
    return not head.requires_grad and model.config.vocab_size >= MANY_TOKENS


def _rows(table: Table) -> Rows:
    return table if isinstance(table, Tensor) else table.tile


def subset(context: TrainingContext, rows: Tensor) -> TrainingContext:
    """The context of some rows of a batch."""
    part = TrainingContext(context.config)
    for layer in context.keys:
        part.append(
            layer, context.keys[layer][rows], context.values[layer][rows], context.positions[layer][rows]
        )
    return part


def _balance(log: list[Any] | None, real: Tensor) -> Tensor:
    """Switch load balancing, mean over layers: E * sum_e (share of choices) * (mean probability).

    1 when balanced. Only `real` [T] tokens count. Source: Fedus et al. 2021, eq. 4, with
    top-k choices as shares.
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
    """Computes the terms of a micro-batch, and from them its part of a step: "sft" of the settings.

    A subclass trains on something else: see `train.preferences`.
    """

    answers: ClassVar[int] = 1  # rows of an example
    # What is told of held-out examples: {name: figure}. The run's best has the lowest "loss".
    held_out: ClassVar[Mapping[str, str]] = {"loss": "canvas", "wrong": "wrong"}

    def __init__(self, model: Model, settings: ObjectiveSettings) -> None:
        self.model, self.settings = model, settings
        self.token_losses, self.soft_guess = token_losses, soft_guess  # `train.fast` compiles these
        # What passes of a phase ("encode", "denoise") run inside of, and whether the encoder has a loss.
        self.phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
        self.trains_encoder = True
        for layer in model.layers:
            experts: Any = layer.experts
            experts.compute = experts_sorted
        for name, parameter in model.named_parameters():
            if ".router." in name:
                parameter.requires_grad_(not settings.freeze_router)

    def draw(self, batch: Batch, seed: int, step: int, micro: int) -> Draws:
        """The draws of a micro-batch, on its device."""
        random = generator(seed, step, micro)
        vocab = self.model.config.vocab_size
        draws = draw(batch.clean.cpu(), vocab, self.settings, random, batch.given.cpu())
        device = batch.clean.device
        return Draws(draws.t.to(device), draws.canvas.to(device), draws.coin.to(device))

    def step(self, batch: Batch, draws: Draws, whole: StepCounts) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the step's loss, to be differentiated, and of its figures: over the step's
        micro-batches both add up to the means."""
        terms, share = self.terms(batch, draws), 1 / whole.batches
        canvas, encoder = terms.canvas / max(whole.canvas, 1), terms.encoder / max(whole.encoder, 1)
        figures = {
            "loss": canvas + self.settings.encoder_weight * encoder,
            "canvas": canvas,
            "encoder": encoder,
            "aux": terms.aux * share,
            "wrong": terms.wrong / max(whole.canvas, 1),
        }
        return self.loss(terms, whole.canvas, whole.encoder, share), figures

    def terms(self, batch: Batch, draws: Draws) -> Terms:
        """Sums over the micro-batch; see `Terms`."""
        encoder, aux_encoder, context = self._encode(batch)
        with self.phase("denoise"):
            soft = self._soft(batch, draws, context)
            losses, aux_canvas, wrong = self._denoise(batch, draws.canvas, soft, context)
        rows = losses.view(batch.clean.shape).sum(1)
        return Terms(losses.sum(), encoder, (aux_encoder + aux_canvas) / 2, wrong, rows)

    def _log(self) -> list[Any] | None:
        return [] if self.settings.aux_weight > 0 else None

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor, TrainingContext]:
        """(sum of next-token cross-entropy, auxiliary loss, context)."""
        context, log = TrainingContext(self.model.config), self._log()
        with self.phase("encode"):
            hidden = self.model.encode(
                batch.tokens, batch.positions, context, hidden=self.trains_encoder, router_log=log
            )
        if hidden is None:
            nothing = torch.zeros((), device=batch.tokens.device)
            return nothing, nothing, context
        places = batch.encoder_places[..., None].expand(-1, -1, hidden.shape[-1])
        losses, _ = self.token_losses(self.model, hidden.gather(1, places), batch.encoder_targets)
        return losses.sum(), _balance(log, (batch.positions >= 0).flatten()), context

    def _denoise(
        self, batch: Batch, canvas: Tensor, soft: Tensor | None, context: TrainingContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pass 2: (cross-entropy of every place [B * C], 0 where it is not supervised; auxiliary loss; wrong
        places)."""
        log, real = self._log(), batch.supervised.any(1).repeat_interleave(canvas.shape[1])
        hidden = self.model.denoise(canvas, batch.canvas_positions, context, soft, router_log=log)
        targets = torch.where(batch.supervised, batch.clean, IGNORE)
        losses, likely = self.token_losses(self.model, hidden, targets)
        wrong = (likely != batch.clean.flatten()) & batch.supervised.flatten()
        return losses, _balance(log, real), wrong.sum()

    def _soft(self, batch: Batch, draws: Draws, context: TrainingContext) -> Tensor | None:
        """Soft embeddings: of pass 1 where the coin says so, zero elsewhere. Only those rows are computed."""
        if self.settings.self_conditioning == 0:
            return None
        model, rows = self.model, draws.coin.nonzero()[:, 0]
        width = model.config.hidden_size
        soft = torch.zeros(*batch.clean.shape, width, device=batch.clean.device, dtype=model.dtype)
        if len(rows):
            with torch.no_grad():
                part = subset(context, rows)
                hidden = self.model.denoise(draws.canvas[rows], batch.canvas_positions[rows], part)
                soft[rows] = self.soft_guess(self.model, hidden).to(soft.dtype)
        return soft

    def loss(self, terms: Terms, canvas_count: int, encoder_count: int, share: float = 1.0) -> Tensor:
        """The scalar to differentiate: means over the whole step's counts; `share` of
        the step's auxiliary loss."""
        loss = terms.canvas / max(canvas_count, 1)
        if self.settings.encoder_weight:
            loss = loss + self.settings.encoder_weight * terms.encoder / max(encoder_count, 1)
        return loss + self.settings.aux_weight * share * terms.aux


__all__ = [
    "Draws",
    "Objective",
    "StepCounts",
    "Terms",
    "TrainingContext",
    "corrupt",
    "draw",
    "generator",
    "soft_guess",
    "subset",
    "token_losses",
]
