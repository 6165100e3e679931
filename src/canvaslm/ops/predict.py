"""From hidden states to a prediction: the only code that sees the whole vocabulary.

Head, soft-cap, temperature, softmax statistics, sampling and the soft embedding happen in one pass over tiles of the
vocabulary, so that the logits never exist whole: at 262,144 columns they would take 268 MB a row. Head + softmax +
soft embedding is attention with the embedding table as keys and values, and is computed as flash attention is:
running maximum, running sums, rescaled when the maximum grows (Milakov & Gimelshein 2018).

Sampling is Gumbel-max in two stages. The maximum over a tile of (logit + Gumbel noise) is itself Gumbel distributed
around the tile's log-sum-exp, so the winning tile is argmax(lse(tile) + Gumbel), and the token inside it is one
inverse-CDF draw. Exact, streaming, and 1/1024 of the random numbers. Tiles of `SAMPLE_TILE` tokens are part of the
definition: every kernel must use the same ones to draw the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from . import noise
from .quantised import QuantVocabulary

SAMPLE_TILE = 1024
# Columns computed at once: a multiple of SAMPLE_TILE, wide enough for the matrix product, small enough for the cache.
GEMM_TILE = 4 * SAMPLE_TILE


# Share of the largest probability below which a token counts as impossible; 262,144 of these are still nothing in fp32.
SMALLEST_MASS = 1e-35

# A matrix [V, H]: a tensor, or one that unpacks its rows when asked.
Table = Tensor | QuantVocabulary


@dataclass(frozen=True)
class Draw:
    """The random numbers of one row of places at one step: tile noise [C, tiles] fp32 and uniforms [C] float64."""

    gumbel: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class Prediction:
    """What one denoise step says about each place. All [..., C]; O(places), never O(vocabulary)."""

    sampled: Tensor  # int64
    argmax: Tensor  # int64
    entropy: Tensor  # nats, of the temperature-scaled distribution, fp32
    logprob: Tensor  # of the argmax token under that distribution, fp32
    soft: Tensor | None  # [..., C, H], expected embedding times sqrt(H), in the embedding's dtype
    top_tokens: Tensor | None = None  # [..., C, k] int64, the k most probable tokens, best first
    top_logprobs: Tensor | None = None  # [..., C, k] fp32

    def row(self, index: int) -> Prediction:
        fields = (
            self.sampled,
            self.argmax,
            self.entropy,
            self.logprob,
            self.soft,
            self.top_tokens,
            self.top_logprobs,
        )
        return Prediction(*(None if x is None else x[index] for x in fields))  # type: ignore[arg-type]


def draw(seed: int, canvas: int, step: int, places: int, vocab_size: int, device: torch.device | str) -> Draw:
    """The random numbers for sampling one canvas at one step; independent of everything but the arguments."""
    tiles = -(-vocab_size // SAMPLE_TILE)
    keys = noise.bits(noise.stream(seed, canvas, step, noise.TILE), places, device)
    uniform = noise.uniforms(noise.stream(seed, canvas, step, noise.WITHIN), places, device)
    return Draw(noise.gumbels(keys, tiles), uniform)


def predict(
    hidden: Tensor,
    head: Table,
    embedding: Table,
    *,
    softcap: float,
    temperature: Sequence[float],
    draws: Sequence[Draw],
    soft: bool = True,
    top: int = 0,
    exact: bool = False,
) -> Prediction:
    """Prediction for canvases of hidden states [R, C, H], each row at its own temperature.

    head [V, H] makes the logits, embedding [V, H] the soft embedding (the same table when tied). temperature: R
    positive numbers. draws: R draws of `draw`. top: how many of the most probable tokens to name. exact: native
    kernels leave nothing out of the soft embedding (this code never does). Peak memory beyond the result: a few times R * C * GEMM_TILE floats.
    """
    if isinstance(head, QuantVocabulary) and isinstance(embedding, QuantVocabulary):
        options = {
            "softcap": softcap,
            "temperature": temperature,
            "draws": draws,
            "soft": soft,
            "top": top,
            "exact": exact,
        }
        made: Prediction | None = head.predict(hidden, embedding, **options)
        if made is not None:
            return made
    rows, places, _ = hidden.shape
    heat = torch.tensor(list(temperature), device=hidden.device).repeat_interleave(places)[:, None]
    state = _Running(
        hidden.flatten(0, 1), torch.cat([d.uniform for d in draws]), soft, min(top, head.shape[0])
    )
    gumbel = torch.cat([d.gumbel for d in draws])
    for start in range(0, head.shape[0], GEMM_TILE):
        rows_of_head = _tile(head, start)
        logits = F.linear(state.hidden, rows_of_head).float()
        logits = torch.tanh_(logits.div_(softcap)).mul_(softcap).div_(heat)
        table = None if not soft else rows_of_head if embedding is head else _tile(embedding, start)
        state.add(logits, start, gumbel, table)
    return _finish(state, (rows, places), embedding)


def _tile(table: Table, start: int) -> Tensor:
    """Rows start .. start + GEMM_TILE."""
    if isinstance(table, Tensor):
        return table[start : start + GEMM_TILE]
    return table.tile(start, start + GEMM_TILE)


def _finish(state: _Running, shape: tuple[int, int], embedding: Table) -> Prediction:
    lse = state.peak + state.total.log()
    entropy = (lse - state.weighted / state.total).clamp_(min=0)
    soft = None
    if state.soft is not None:
        scale = torch.tensor(embedding.shape[1] ** 0.5, dtype=embedding.dtype, device=embedding.device)
        soft = ((state.soft / state.total[:, None]).to(embedding.dtype) * scale).unflatten(0, shape)
    sampled, argmax, entropy, logprob = (
        x.view(shape) for x in (state.sampled, state.argmax, entropy, state.best - lse)
    )
    prediction = Prediction(sampled, argmax, entropy, logprob, soft)
    if not state.top_values.shape[1]:
        return prediction
    ranked = (state.top_values - lse[:, None]).unflatten(0, shape)
    return replace(prediction, top_tokens=state.top_tokens.unflatten(0, shape), top_logprobs=ranked)


class _Running:
    """Softmax statistics of T places over the tiles seen so far.

    `peak` is the running maximum m, `total` is sum exp(l - m), `weighted` is sum exp(l - m) * l, `soft` is
    sum exp(l - m) * embedding.
    """

    def __init__(self, hidden: Tensor, uniform: Tensor, soft: bool, top: int = 0) -> None:
        places = hidden.shape[0]
        floats = torch.zeros(places, dtype=torch.float32, device=hidden.device)
        self.hidden, self.uniform = hidden, uniform
        self.peak = torch.full_like(floats, -torch.inf)
        self.total, self.weighted = floats.clone(), floats.clone()
        self.best, self.score = self.peak.clone(), self.peak.clone()
        self.argmax = torch.zeros(places, dtype=torch.int64, device=hidden.device)
        self.sampled = self.argmax.clone()
        self.soft = torch.zeros(places, hidden.shape[1], device=hidden.device) if soft else None
        self.top_values = floats.new_full((places, top), -torch.inf)
        self.top_tokens = self.argmax.new_zeros(places, top)

    def add(self, logits: Tensor, start: int, gumbel: Tensor, embedding: Tensor | None) -> None:
        """Takes in the logits [T, columns] of the tokens from `start` on."""
        top, where = logits.max(dim=-1)
        better = top > self.best
        self.argmax = torch.where(better, where + start, self.argmax)
        self.best = torch.maximum(self.best, top)
        if self.top_values.shape[1]:
            self._rank(logits, start)
        peak = torch.maximum(self.peak, top)
        # What is too small to count becomes zero: denormal numbers make a matrix product eight times slower.
        mass = torch.threshold_(torch.exp(logits - peak[:, None]), SMALLEST_MASS, 0.0)
        keep = torch.exp(self.peak - peak)
        self.total = self.total * keep + mass.sum(-1)
        # 0 * -inf: a token that is forbidden adds nothing to the entropy.
        self.weighted = self.weighted * keep + (mass * logits.clamp(min=-1e30)).sum(-1)
        if embedding is not None and self.soft is not None:
            self.soft = self.soft * keep[:, None] + (mass.to(embedding.dtype) @ embedding).float()
        self.peak = peak
        for offset in range(0, logits.shape[1], SAMPLE_TILE):
            tile = (start + offset) // SAMPLE_TILE
            self._sample(mass[:, offset : offset + SAMPLE_TILE], start + offset, gumbel[:, tile])

    def _rank(self, logits: Tensor, start: int) -> None:
        """Keeps the best of the tokens seen so far and these."""
        count = self.top_values.shape[1]
        values, where = logits.topk(min(count, logits.shape[1]), dim=-1)
        values, tokens = (
            torch.cat((self.top_values, values), -1),
            torch.cat((self.top_tokens, where + start), -1),
        )
        self.top_values, kept = values.topk(count, dim=-1)
        self.top_tokens = tokens.gather(-1, kept)

    def _sample(self, mass: Tensor, start: int, gumbel: Tensor) -> None:
        """Draws within one sampling tile for the places where it takes the lead. mass = exp(logit - peak)."""
        score = mass.sum(-1).log() + self.peak + gumbel
        leads = (score > self.score).nonzero().squeeze(-1)
        if leads.numel() == 0:
            return
        self.score[leads] = score[leads]
        self.sampled[leads] = start + _inverse_cdf(mass[leads], self.uniform[leads])


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> Tensor:
    """First index whose cumulative mass exceeds uniform * total; mass [T, n] >= 0, uniform [T] in [0, 1)."""
    cumulative = mass.double().cumsum(-1)
    index = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(-1)
    return index.clamp_(max=mass.shape[1] - 1)


def sample(logits: Tensor, one: Draw) -> Tensor:
    """The token `predict` would draw for processed logits [C, V]: the readable twin, for tests and small models."""
    places, vocab = logits.shape
    tiles = F.pad(logits.float(), (0, -vocab % SAMPLE_TILE), value=-torch.inf).view(places, -1, SAMPLE_TILE)
    winner = (tiles.logsumexp(-1) + one.gumbel).argmax(-1)
    inside = tiles[torch.arange(places, device=logits.device), winner]
    mass = torch.exp(inside - inside.max(-1, keepdim=True).values)
    return winner * SAMPLE_TILE + _inverse_cdf(mass, one.uniform)


__all__ = ["GEMM_TILE", "SAMPLE_TILE", "Draw", "Prediction", "Table", "draw", "predict", "sample"]
