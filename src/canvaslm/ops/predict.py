"""From hidden states to a prediction: the only code that sees the whole vocabulary.

Head, soft-cap, temperature, softmax statistics, sampling and the soft embedding happen in one pass over tiles
of the vocabulary, so that the logits never exist whole: at 262,144 columns they would take 268 MB a row. Head
+ softmax + soft embedding is attention with the embedding table as keys and values, and is computed as flash
attention is: running maximum, running sums, rescaled when the maximum grows (Milakov & Gimelshein 2018).

Sampling is Gumbel-max in two stages. The maximum over a tile of (logit + Gumbel noise) is itself Gumbel
distributed around the tile's log-sum-exp, so the winning tile is argmax(lse(tile) + Gumbel), and the token
inside it is one inverse-CDF draw. Exact, streaming, and 1/1024 of the random numbers. Tiles of `SAMPLE_TILE`
tokens are part of the definition: every kernel must use the same ones to draw the same token.

With a top-k (as in llama.cpp's pull request 24427) the softmax that is sampled and embedded is that over a
place's k largest logits; the draw is the same, over the tokens kept (see `top_k.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import noise
from .prediction import Prediction
from .quantised import QuantVocabulary
from .restrict import Biases, Restriction
from .targets import RunningTargets, flat
from .top_k import RunningTopK, TopKSoftmax, keep_top

SAMPLE_TILE = 1024
# Columns computed at once: a multiple of SAMPLE_TILE, wide enough for the matrix product,
# small enough for the cache.
GEMM_TILE = 4 * SAMPLE_TILE


# Share of the largest probability below which a token counts as impossible; 262,144 of these are
# still nothing in fp32.
SMALLEST_MASS = 1e-35

# A matrix [V, H]: a tensor, or one that unpacks its rows when asked.
Table = Tensor | QuantVocabulary


@dataclass(frozen=True)
class Draw:
    """The random numbers of one row of places at one step: tile noise [C, tiles] fp32
    and uniforms [C] float64."""

    gumbel: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class PredictOptions:
    """How each of R rows is sampled (R values each of the first five), and what is
    wanted of all: see `predict`."""

    temperature: Sequence[float]
    draws: Sequence[Draw]
    top_k: Sequence[int]  # 0, or less than the vocabulary
    tail_correction: Sequence[bool]
    named: Sequence[int]  # how many of the most probable tokens to name, at most the vocabulary
    top: int  # the most that any row wants named
    softcap: float
    soft: bool
    exact: bool
    restriction: Restriction | None = None
    targets: Sequence[Sequence[int]] | None = None  # of each row, a token (or NO_TARGET) for each place

    @property
    def cut(self) -> bool:
        """Whether there is a top-k; some rows have one only if all do."""
        return any(self.top_k)

    def of(self, rows: Sequence[int]) -> PredictOptions:
        """That of these rows."""
        return replace(
            self,
            temperature=[self.temperature[i] for i in rows],
            draws=[self.draws[i] for i in rows],
            top_k=[self.top_k[i] for i in rows],
            tail_correction=[self.tail_correction[i] for i in rows],
            named=[self.named[i] for i in rows],
            restriction=None if self.restriction is None else self.restriction.rows(rows),
            targets=None if self.targets is None else [self.targets[i] for i in rows],
        )


def draw(seed: int, canvas: int, step: int, places: int, vocab_size: int, device: torch.device | str) -> Draw:
    """The random numbers for sampling one canvas at one step; independent of everything but the arguments."""
    tiles = -(-vocab_size // SAMPLE_TILE)
    keys = noise.bits(noise.stream(seed, canvas, step, noise.TILE), places, device)
    uniform = noise.uniforms(noise.stream(seed, canvas, step, noise.WITHIN), places, device)
    return Draw(noise.gumbels(keys, tiles), uniform)


def draws_of(canvas_keys: Tensor, steps: Tensor, places: int, vocab_size: int) -> list[Draw]:
    """As `draw`, for rows at steps of their own, where their keys [R] (see `noise.streams`) are."""
    tiles = -(-vocab_size // SAMPLE_TILE)
    tile_keys, within_keys = noise.streams(canvas_keys, steps, noise.TILE, noise.WITHIN)
    gumbel = noise.gumbels(noise.bits(tile_keys, places), tiles)
    uniform = noise.uniforms(within_keys, places)
    return [Draw(*row) for row in zip(gumbel, uniform, strict=True)]


def predict(
    hidden: Tensor,
    head: Table,
    embedding: Table,
    *,
    softcap: float,
    temperature: Sequence[float],
    draws: Sequence[Draw],
    soft: bool = True,
    top: int | Sequence[int] = 0,
    exact: bool = False,
    top_k: Sequence[int] | None = None,
    tail_correction: Sequence[bool] | None = None,
    forbidden: int | None = None,
    biases: Sequence[Biases] | None = None,
    allowed: Tensor | None = None,
    bits: Tensor | None = None,
    check: bool = True,
    targets: Sequence[Sequence[int]] | None = None,
) -> Prediction:
    """Prediction for canvases of hidden states [R, C, H], each row at its own temperature.

    head [V, H] makes the logits, embedding [V, H] the soft embedding (the same table when tied). temperature:
    R positive numbers. draws: R draws of `draw`. top: how many of the most probable tokens to name, of each
    row or of all. exact: native kernels leave nothing out of the soft embedding (this code never does). Peak
    memory beyond the result: a few times R * C * GEMM_TILE floats.

    top_k: R numbers; a row with 0 < k < V samples from, and embeds, the softmax over its places' k
    largest logits, and its entropy is of those, or with its tail_correction of all.
    Log-probabilities are of all in any case.

    biases: R lists of (token, value), added to the logits after the division by temperature; -inf forbids.
    bits: int32 [n, ceil(V / 32)], bit t % 32 of word t // 32 allows token t (`restrict.bit_rows`); allowed:
    integers [R, C], each place's row of it, or -1 for all tokens. Everything predicted is of what is left. A
    place with nothing left is a UsageError that names it; with check=False it is left to the caller, who
    reads `Prediction.impossible` when it suits: without that test nothing is read back from the device.
    forbidden: a token that has no probability anywhere (a mask); softcap 0: none. targets: R lists of C
    tokens, whose log-probabilities and ranks are wanted besides (`targets.NO_TARGET`: of none).
    """
    rows, places, vocabulary = *hidden.shape[:2], head.shape[0]
    ks = [k if 0 < k < vocabulary else 0 for k in top_k or [0] * rows]
    named = [min(n, vocabulary) for n in ([top] * rows if isinstance(top, int) else top)]
    how = PredictOptions(
        temperature, draws, ks, tail_correction or [False] * rows, named, max(named, default=0), softcap,
        soft, exact,
        Restriction.of((rows, places), vocabulary, biases, allowed, bits, forbidden),
        targets,
    )  # fmt: skip
    made = _by_top_k(hidden, head, embedding, how)
    if check and (allowed is not None or any(biases or ())):
        made.check()
    return made


def _by_top_k(hidden: Tensor, head: Table, embedding: Table, how: PredictOptions) -> Prediction:
    """`predict`, the rows with a top-k apart from those without."""
    groups = [[i for i, k in enumerate(how.top_k) if (k > 0) == cut] for cut in (False, True)]
    if not all(groups):
        return replace(_predict(hidden, head, embedding, how), named=tuple(how.named))
    parts = [_predict(hidden[group], head, embedding, how.of(group)) for group in groups]
    order = [i for group in groups for i in group]
    return replace(Prediction.gathered(parts, order), named=tuple(how.named))


def _predict(hidden: Tensor, head: Table, embedding: Table, how: PredictOptions) -> Prediction:
    """`predict` for rows that all have a top-k, or all have none."""
    # A vocabulary brings the kernel that it was made for; that kernel reads an embedding
    # of its own kind alone.
    kernel: Any = getattr(head, "predict_kernel", None)
    if kernel is not None and getattr(embedding, "predict_kernel", None) == kernel:
        made: Prediction = kernel(hidden, head, embedding, how)
        return made
    rows, places, _ = hidden.shape
    logits_of = _Logits(hidden, head, how)
    whole = not how.cut
    uniform = torch.cat([d.uniform for d in how.draws])
    state = _Running(
        hidden.flatten(0, 1), uniform, head.shape[0], how.soft and whole, how.top if whole else 0
    )
    best = RunningTopK(rows * places, max(how.top, *how.top_k), hidden.device) if how.cut else None
    gumbel = torch.cat([d.gumbel for d in how.draws])
    chosen = None if how.targets is None else RunningTargets(flat(how.targets), GEMM_TILE, logits_of)
    for start in range(0, head.shape[0], GEMM_TILE):
        logits = logits_of(start)
        if best is not None:
            best.add(logits, start)
        if chosen is not None:
            chosen.add(logits)
        table = None
        if state.soft is not None:
            table = logits_of.rows if embedding is head else _tile(embedding, start)
        state.add(logits, start, gumbel if whole else None, table)
    if best is None:
        made = _finish(state, (rows, places), embedding)
    else:
        made = _finish_top_k(state, best, how, (rows, places), embedding, gumbel)
    if chosen is not None:
        logprob, rank = (x.view(rows, places) for x in chosen.finish(state.peak + state.total.log()))
        made = replace(made, target_logprob=logprob, target_rank=rank)
    if how.restriction is None:
        return made
    return replace(made, impossible=state.impossible().view(rows, places))


class _Logits:
    """Processed logits [T, columns] of all places, tile by tile; `rows` is the head's tile of the last."""

    def __init__(self, hidden: Tensor, head: Table, how: PredictOptions) -> None:
        places = hidden.shape[1]
        self.hidden, self.head, self.softcap = hidden.flatten(0, 1), head, how.softcap
        self.heat = torch.tensor(list(how.temperature), device=hidden.device).repeat_interleave(places)
        self.restriction = None if how.restriction is None else how.restriction.on(places, hidden.device)
        self.rows: Tensor | None = None

    def __call__(self, start: int) -> Tensor:
        """Of the GEMM_TILE tokens from `start` on."""
        self.rows = _tile(self.head, start)
        logits = F.linear(self.hidden, self.rows).float()
        if self.softcap:
            logits = torch.tanh_(logits.div_(self.softcap)).mul_(self.softcap)
        logits = logits.div_(self.heat[:, None])
        if self.restriction is not None:
            self.restriction.apply(logits, start)
        return logits


def _tile(table: Table, start: int) -> Tensor:
    """Rows start .. start + GEMM_TILE."""
    if isinstance(table, Tensor):
        return table[start : start + GEMM_TILE]
    return table.tile(start, start + GEMM_TILE)


def _finish(state: _Running, shape: tuple[int, int], embedding: Table) -> Prediction:
    lse = state.peak + state.total.log()
    soft = None
    if state.soft is not None:
        soft = _scaled(state.soft / state.total[:, None], embedding).unflatten(0, shape)
    sampled, argmax, entropy, logprob = (
        x.view(shape) for x in (state.sampled(), state.argmax, state.entropy(), state.best - lse)
    )
    prediction = Prediction(sampled, argmax, entropy, logprob, soft)
    if not state.top_values.shape[1]:
        return prediction
    tokens = state.top_tokens.masked_fill(
        state.top_values == -torch.inf, 0
    )  # fewer are allowed than asked for
    ranked = (state.top_values - lse[:, None]).unflatten(0, shape)
    return replace(prediction, top_tokens=tokens.unflatten(0, shape), top_logprobs=ranked)


def _finish_top_k(
    state: _Running,
    best: RunningTopK,
    how: PredictOptions,
    shape: tuple[int, int],
    embedding: Table,
    gumbel: Tensor,
) -> Prediction:
    """The prediction of rows with a top-k: what is sampled and embedded comes from
    `best`, the rest from `state`."""
    places, lse = shape[1], state.peak + state.total.log()
    rows = [slice(i * places, (i + 1) * places) for i in range(shape[0])]
    masses = [best.softmax(row, k) for row, k in zip(rows, how.top_k, strict=True)]
    whole = state.entropy()
    entropy = torch.cat(
        [whole[r] if t else m.entropy for r, m, t in zip(rows, masses, how.tail_correction, strict=True)]
    )
    drawn = torch.cat(
        [_draw_top_k(m, gumbel[r], state.uniform[r]) for r, m in zip(rows, masses, strict=True)]
    )
    soft = None
    if how.soft:
        soft = _scaled(_embed(masses, embedding), embedding).unflatten(0, shape)
    sampled, argmax, entropy, logprob = (
        x.view(shape) for x in (drawn, state.argmax, entropy, state.best - lse)
    )
    prediction = Prediction(sampled, argmax, entropy, logprob, soft)
    if not how.top:
        return prediction
    tokens, values = best.best(how.top)
    ranked = (values - lse[:, None]).unflatten(0, shape)
    return replace(prediction, top_tokens=tokens.unflatten(0, shape), top_logprobs=ranked)


def _scaled(expected: Tensor, embedding: Table) -> Tensor:
    scale = torch.tensor(embedding.shape[1] ** 0.5, dtype=embedding.dtype, device=embedding.device)
    return expected.to(embedding.dtype) * scale


def _embed(masses: list[TopKSoftmax], embedding: Table) -> Tensor:
    """Expected embeddings [R * C, H] in fp32. Tiles without kept tokens add zeros: to
    know them takes a host read."""
    expected: Tensor | None = None
    for start in range(0, embedding.shape[0], GEMM_TILE):
        share = torch.cat([m.tile(start, min(GEMM_TILE, embedding.shape[0] - start)) for m in masses])
        table = _tile(embedding, start)
        part = (share.to(table.dtype) @ table).float()
        expected = part if expected is None else expected + part
    assert expected is not None
    return expected


def _draw_top_k(masses: TopKSoftmax, gumbel: Tensor, uniform: Tensor) -> Tensor:
    """One token a place [T], drawn in two stages over the tokens that were kept."""
    tile = masses.tokens // SAMPLE_TILE
    sums = torch.zeros(gumbel.shape, dtype=torch.float64, device=gumbel.device)
    winner = (sums.scatter_add_(1, tile, masses.mass.double()).log() + gumbel).argmax(-1, keepdim=True)
    inside = masses.mass.where(tile == winner, 0)
    return masses.tokens.gather(1, _inverse_cdf(inside, uniform)[:, None]).squeeze(1)


class _Running:
    """Softmax statistics of T places over the tiles seen so far.

    `peak` is the running maximum m, `total` is sum exp(l - m), `weighted` is sum exp(l - m) * l, `soft` is
    sum exp(l - m) * embedding.
    """

    def __init__(self, hidden: Tensor, uniform: Tensor, vocabulary: int, soft: bool, top: int = 0) -> None:
        places = hidden.shape[0]
        floats = torch.zeros(places, dtype=torch.float32, device=hidden.device)
        self.hidden, self.uniform = hidden, uniform
        self.peak = torch.full_like(floats, -torch.inf)
        self.total, self.weighted = floats.clone(), floats.clone()
        self.best, self.score = self.peak.clone(), self.peak.clone()
        self.argmax = torch.zeros(places, dtype=torch.int64, device=hidden.device)
        # Where the token comes from: the tile that leads, and its masses when it took the lead.
        self.tile = self.argmax.clone()
        self.mass = floats.new_zeros(places, min(SAMPLE_TILE, vocabulary))
        self.soft = torch.zeros(places, hidden.shape[1], device=hidden.device) if soft else None
        self.top_values = floats.new_full((places, top), -torch.inf)
        self.top_tokens = self.argmax.new_zeros(places, top)

    def impossible(self) -> Tensor:
        """Bool [T]: places where every token was forbidden."""
        return self.peak == -torch.inf

    def sampled(self) -> Tensor:
        """One token a place [T], from the tile that leads."""
        return self.tile * SAMPLE_TILE + _inverse_cdf(self.mass, self.uniform)

    def entropy(self) -> Tensor:
        """Nats [T]."""
        return (self.peak + self.total.log() - self.weighted / self.total).clamp_(min=0)

    def add(self, logits: Tensor, start: int, gumbel: Tensor | None, embedding: Tensor | None) -> None:
        """Takes in the logits [T, columns] of the tokens from `start` on. Without Gumbel
        noise nothing is sampled."""
        top, where = logits.max(dim=-1)
        better = top > self.best
        self.argmax = torch.where(better, where + start, self.argmax)
        self.best = torch.maximum(self.best, top)
        if self.top_values.shape[1]:
            self._rank(logits, start)
        peak = torch.maximum(self.peak, top)
        # What is too small to count becomes zero: denormal numbers make a matrix product eight times slower.
        # While all tokens so far are forbidden the peak is -inf, and any finite number in
        # its place gives mass 0.
        shift = peak.clamp(min=-3e38)
        mass = torch.threshold_(torch.exp(logits - shift[:, None]), SMALLEST_MASS, 0.0)
        keep = torch.exp(self.peak - shift)
        self.total = self.total * keep + mass.sum(-1)
        # 0 * -inf: a token that is forbidden adds nothing to the entropy.
        self.weighted = self.weighted * keep + (mass * logits.clamp(min=-1e30)).sum(-1)
        if embedding is not None and self.soft is not None:
            self.soft = self.soft * keep[:, None] + (mass.to(embedding.dtype) @ embedding).float()
        self.peak = peak
        if gumbel is None:
            return
        self._lead(mass, start // SAMPLE_TILE, gumbel)

    def _rank(self, logits: Tensor, start: int) -> None:
        """Keeps the best of the tokens seen so far and these."""
        count = self.top_values.shape[1]
        values, where = logits.topk(min(count, logits.shape[1]), dim=-1)
        values, tokens = (
            torch.cat((self.top_values, values), -1),
            torch.cat((self.top_tokens, where + start), -1),
        )
        self.top_values, best = values.topk(count, dim=-1)
        self.top_tokens = tokens.gather(-1, best)

    def _lead(self, mass: Tensor, first: int, gumbel: Tensor) -> None:
        """Notes which places' lead is taken by one of these sampling tiles, and its
        masses, exp(logit - peak)."""
        count = -(-mass.shape[1] // SAMPLE_TILE)
        for i in range(count):
            inside = mass[:, i * SAMPLE_TILE : (i + 1) * SAMPLE_TILE]
            score = inside.sum(-1).log() + self.peak + gumbel[:, first + i]
            leads = score > self.score
            self.score = torch.where(leads, score, self.score)
            self.tile = torch.where(leads, first + i, self.tile)
        width = self.mass.shape[1]
        if first == 0 and count == 1:  # the only tile
            self.mass = mass
            return
        tiles = F.pad(mass, (0, count * width - mass.shape[1])).view(len(mass), count, width)
        chosen = (self.tile - first).clamp(0, count - 1)[:, None, None].expand(-1, 1, width)
        self.mass = torch.where((self.tile >= first)[:, None], tiles.gather(1, chosen).squeeze(1), self.mass)


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> Tensor:
    """First index whose cumulative mass exceeds uniform * total; mass [T, n] >= 0, uniform [T] in [0, 1)."""
    cumulative = mass.double().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    # Should the product round up to the total: the last index that has any mass.
    return torch.minimum(index, torch.searchsorted(cumulative, total)).squeeze(-1)


def sample(logits: Tensor, one: Draw, top_k: int = 0) -> Tensor:
    """The token `predict` would draw for processed logits [C, V]: the readable twin,
    for tests and small models."""
    places, vocab = logits.shape
    logits = keep_top(logits, top_k)
    tiles = F.pad(logits.float(), (0, -vocab % SAMPLE_TILE), value=-torch.inf).view(places, -1, SAMPLE_TILE)
    winner = (tiles.logsumexp(-1) + one.gumbel).argmax(-1)
    inside = tiles[torch.arange(places, device=logits.device), winner]
    mass = torch.exp(inside - inside.max(-1, keepdim=True).values)
    return winner * SAMPLE_TILE + _inverse_cdf(mass, one.uniform)


__all__ = [
    "GEMM_TILE",
    "SAMPLE_TILE",
    "Draw",
    "PredictOptions",
    "Prediction",
    "Table",
    "draw",
    "draws_of",
    "predict",
    "sample",
]
