"""Turns sequences into tensors, runs the model, and turns what comes back into predictions."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..cache import CanvasKeys, DenoiseContext, EncodeContext, KVCache, storage_type
from ..diffusion import Canvas, temperature, top_k
from ..model import Model, RowsContext
from ..model.adapting import AdaptedSpan
from ..ops.predict import Prediction, draws_of, predict
from ..ops.token_logprobs import token_logprobs
from ..types import AdapterUse
from .asking import ask
from .live import LiveRows
from .reader import Heard, questions
from .rules import joined
from .scheduler import Row
from .sequence import Sequence


@dataclass(frozen=True)
class Denoised:
    """What a pass says of its canvases of one length."""

    rows: list[Row]
    canvas: Canvas  # of these rows, as the model read them
    prediction: Prediction
    computed: list[int]  # how many places of each row were computed
    # Of each row, fp64 [places, tokens]: what is said of the tokens that it watches; None: it watches none
    watched: list[Tensor | None]


@dataclass(frozen=True)
class Pass:
    """What a pass says: of canvases, and, for the causal reader, of tokens that were encoded."""

    denoised: list[Denoised]
    heard: list[tuple[Row, Heard]]


class Runner:
    """The only part of the engine that calls the model. Not thread-safe; keeps no request state."""

    def __init__(
        self,
        model: Model,
        *,
        deterministic: bool = False,
        kv_type: torch.dtype | None = None,
        exact: bool = False,
        mixed: bool = True,
    ) -> None:
        """`deterministic` runs one row at a time: for backends whose products depend on the batch's shape.

        On a CPU in fp32 they do not (tests hold that down), so that batching changes no bit. `kv_type` is
        what keys and values are kept in, None: the activations' type; but see `cache.storage_type`. `exact`
        lets those kernels leave nothing out of the soft embedding. Without `mixed`, encoding has passes of
        its own, one for each row: the same tokens in more time, for measuring both.
        """
        self.model = model.eval().requires_grad_(False)
        self.deterministic, self.exact, self.mixed = deterministic, exact, mixed
        self.device, self.dtype = model.device, model.dtype
        self.facts = model.config.facts
        self.kv_type = storage_type(kv_type or self.dtype, model.store)

    def new_cache(self, expected: int = 0) -> KVCache:
        return KVCache(self.model.config, self.device, self.kv_type, expected, store=self.model.store)

    def new_canvas_keys(self, sequence: Sequence) -> CanvasKeys | None:
        """Where a sequence's next canvas keeps its keys and values; None where each step makes them anew."""
        if not sequence.params.keep_steps:
            return None
        return _known(sequence.cache).new_canvas_keys(sequence.next_places)

    def cache_bytes(self, tokens: int) -> int:
        """What the keys and values of so many tokens take at most."""
        return KVCache.estimate(self.model.config, tokens, self.kv_type, store=self.model.store)

    def kv_bytes(self, sequence: Sequence, tokens: int) -> int:
        """What those of a sequence take at most, of so many tokens and of a canvas where it keeps its own."""
        if not sequence.params.keep_steps:
            return self.cache_bytes(tokens)
        own = KVCache.estimate_canvas(self.model.config, sequence.places, self.dtype, store=self.model.store)
        return self.cache_bytes(tokens) + own

    def passes(self, rows: list[Row]) -> list[list[Row]]:
        """A step's rows, as the passes to make of them: one, unless the engine was asked for others."""
        if not self.mixed:
            encode = [[replace(row, denoise=False)] for row in rows if row.count]
            canvases = [Row(row.sequence, 0, denoise=True) for row in rows if row.denoise]
            return encode + self._together(canvases)
        return self._together(rows)

    def _together(self, rows: list[Row]) -> list[list[Row]]:
        if self.deterministic:
            return [[row] for row in rows]
        return [rows] if rows else []

    @torch.inference_mode()
    def run(self, rows: list[Row]) -> Pass:
        """One pass: encodes what the rows have to encode, denoises the canvases of those that denoise.

        Returns what the model says of the latter, canvases of equal length together, and of what is to be
        read. No sequence changes: what was encoded is written to its cache, not counted in.
        """
        encode = [row for row in rows if row.count]
        groups = [LiveRows.of(group, self.model.fewest) for group in _by_length(rows)]
        chunks = [self._chunk(row) for row in encode]
        tokens = torch.cat([*chunks, *(live.pick(live.canvas.tokens) for live in groups)])
        positions = torch.cat(
            [
                *(self._positions(row, 0, len(chunk)) for row, chunk in zip(encode, chunks, strict=True)),
                *(self._places(live) for live in groups),
            ]
        )
        context = RowsContext(
            [(EncodeContext(_cache(row)), len(chunk)) for row, chunk in zip(encode, chunks, strict=True)],
            [one for live in groups for one in _contexts(live)],
        )
        read, lengths = any(row.read for row in encode), [len(chunk) for chunk in chunks]
        with self._adapted(encode, lengths, groups):
            hidden = self.model(
                tokens[None], positions[None], context, sum(lengths), _soft(groups), states=read
            )
        sizes = [sum(live.counts) for live in groups]
        heard = []
        if read:
            *states, hidden = hidden[0].split([*lengths, sum(sizes)])
            heard, hidden = self._heard(encode, states), hidden[None]
        if not groups:
            return Pass([], heard)
        parts = hidden[0].split(sizes)
        said = [self._said(*one) for one in zip(groups, parts, strict=True)]
        return Pass(said, heard)

    def _adapted(
        self, encode: list[Row], lengths: list[int], groups: list[LiveRows]
    ) -> AbstractContextManager[None]:
        """Inside, each row's tokens go through the adapters of its request: chunks as encoded ones, canvases
        as denoised ones."""
        if self.model.switch is None:
            return nullcontext()
        canvases = [one for live in groups for one in zip(live.rows, live.counts, strict=True)]
        counts = [*lengths, *(count for _, count in canvases)]
        ends = list(itertools.accumulate(counts))
        changes = [
            *(tuple((use.adapter.encode, use.scale) for use in _uses(row)) for row in encode),
            *(tuple((use.adapter.denoise, use.scale) for use in _uses(row)) for row, _ in canvases),
        ]
        spans = [
            AdaptedSpan(end - count, end, its) for end, count, its in zip(ends, counts, changes, strict=True)
        ]
        return self.model.switch.using(spans)

    def _heard(self, rows: list[Row], states: list[Tensor]) -> list[tuple[Row, Heard]]:
        """What the causal reader says of the tokens of the rows that are read. states: of each row's."""
        found = []
        for row, its in zip(rows, states, strict=True):
            if row.read:
                pending = row.sequence.pending
                tokens = pending[: row.count]
                wanted = questions(row.sequence, tokens, its[: row.count], row.count == len(pending))
                found.append((row, its[: row.count], wanted))
        asked = [one for *_, wanted in found for one in wanted if one is not None]
        answers = iter(ask(self.model, asked) if asked else [])
        heard = []
        for row, its, wanted in found:
            report, choice = (None if one is None else next(answers) for one in wanted)
            plain = row.sequence.reader is not None and row.sequence.reader.judged is not None
            heard.append((row, Heard(its, choice if report is None and plain else report, choice)))
        return heard

    def _chunk(self, row: Row) -> Tensor:
        """The tokens a row encodes, padded to as many as the model needs (`Model.fewest`)."""
        chunk = row.sequence.pending[: row.count]
        # Padding comes last, and is not counted in: nothing sees it where encoding is causal, nor where a
        # chunk is whole blocks, since it begins one of its own.
        padded = chunk + [self.model.config.pad_token_id] * (self.model.fewest - len(chunk))
        return torch.tensor(padded, device=self.device)

    def _positions(self, row: Row, ahead: int, count: int) -> Tensor:
        """Positions of `count` tokens that come `ahead` tokens after those in the row's cache."""
        return _cache(row).length + ahead + torch.arange(count, device=self.device)

    def _places(self, live: LiveRows) -> Tensor:
        """Positions of the places that are computed."""
        places = live.canvas.tokens.shape[1]
        return live.pick(torch.stack([self._positions(row, row.count, places) for row in live.rows]))

    def _said(self, live: LiveRows, hidden: Tensor) -> Denoised:
        """What the model says of R canvases, of the states of their computed places end to end [T, H]."""
        rows, canvas, sequences = live.rows, live.canvas, [row.sequence for row in live.rows]
        how = self._how(sequences, canvas)
        if not live.is_whole:
            said = self._predict(hidden[:, None], live.place_by_place(how))
            return Denoised(rows, canvas, live.merged(said, how["top"]), live.counts, [None] * len(rows))
        hidden = hidden.view(*canvas.tokens.shape, -1)
        if self.facts.logit_shift:
            hidden = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
        return Denoised(
            rows, canvas, self._predict(hidden, how), live.counts, self._watched(sequences, hidden)
        )

    def _watched(self, sequences: list[Sequence], hidden: Tensor) -> list[Tensor | None]:
        """Of each row, the log-probabilities of the tokens that it watches."""
        wanted = [sequence.watched_from(sequence.start) for sequence in sequences]
        named = [
            (row, place - sequence.start, tokens)
            for row, sequence in enumerate(sequences)
            for place, tokens in wanted[row].items()
        ]
        if not named:
            return [None] * len(sequences)
        most = max(len(tokens) for _, _, tokens in named)
        tokens = [[*tokens, *[0] * (most - len(tokens))] for _, _, tokens in named]
        rows, places = torch.tensor([one[:2] for one in named], device=self.device).T
        found = token_logprobs(
            hidden[rows, places],
            self.model.head,
            torch.tensor(tokens, device=self.device),
            softcap=self.model.config.softcap,
            forbidden=self.facts.mask_token_id,
        )
        ends = itertools.accumulate(map(len, wanted))
        return [found[end - len(of) : end] if of else None for of, end in zip(wanted, ends, strict=True)]

    def _predict(self, hidden: Tensor, how: dict[str, Any]) -> Prediction:
        """The prediction for states [R, C, H]."""
        return predict(
            hidden,
            self.model.head,
            self.model.embedding,
            softcap=self.model.config.softcap,
            exact=self.exact,
            forbidden=self.facts.mask_token_id,
            **how,
        )

    def _how(self, sequences: list[Sequence], canvas: Canvas) -> dict[str, Any]:
        """What `predict` is told of R canvases."""
        params = [(s.params, s.progress.step) for s in sequences]
        more_steps = any(step + 1 < p.max_denoising_steps for p, step in params)
        return {
            "temperature": [temperature(p, step) for p, step in params],
            "top_k": [top_k(p, step) for p, step in params],
            "tail_correction": [p.top_k_tail_correction for p, _ in params],
            "draws": draws_of(canvas.key, canvas.step, canvas.tokens.shape[1], self.model.config.vocab_size),
            "top": [s.top_wanted for s in sequences],
            "soft": self.facts.self_conditioning and more_steps,
            **joined([(s.rules, s.rule_places()) for s in sequences], self.device),
        }


def _by_length(rows: list[Row]) -> list[list[Row]]:
    """Those that denoise, canvases of equal length together; in their order otherwise."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        if row.denoise:
            groups.setdefault(row.sequence.live_places, []).append(row)
    return list(groups.values())


def _contexts(live: LiveRows) -> list[tuple[DenoiseContext, int]]:
    """Of each row what its queries see, and how many they are."""
    one_by_one = zip(live.rows, live.places, live.counts, strict=True)
    return [
        (DenoiseContext(_cache(row), row.count, row.sequence.own, places), count)
        for row, places, count in one_by_one
    ]


def _soft(groups: list[LiveRows]) -> Tensor | None:
    """The soft embeddings of all computed places [1, T, H], zeros for canvases before their first step."""
    known = next((live.canvas.soft for live in groups if live.canvas.soft is not None), None)
    if known is None:
        return None
    width = known.shape[-1]
    parts = (
        known.new_zeros(sum(live.counts), width) if live.canvas.soft is None else live.pick(live.canvas.soft)
        for live in groups
    )
    return torch.cat(list(parts))[None]


def _uses(row: Row) -> tuple[AdapterUse, ...]:
    return tuple(use for use in row.sequence.request.adapters if use.scale)


def _cache(row: Row) -> KVCache:
    return _known(row.sequence.cache)


def _known(cache: KVCache | None) -> KVCache:
    assert cache is not None
    return cache


__all__ = ["Denoised", "Runner"]
