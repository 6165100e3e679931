"""`ops.predict.predict` on native kernels: head and sampling in one pass, the soft embedding in a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..predict import Prediction, PredictOptions
from . import head as native
from .repacked import RepackedMatrix

# Places predicted at once: the logits stored for their soft embedding take 512 KiB each at 262,144 columns, 256 MiB in all.
# Pieces of 256 to 1024 places take the same time.
PLACES = 512
# Bytes for the candidates of top-k, 16 for each of k: beyond that fewer places go together.
CANDIDATES = 256 << 20


class NativeVocabulary(Protocol):
    """A table [V, H] as the matrix that makes logits, and as the one that makes soft embeddings."""

    head: RepackedMatrix
    soft_table: native.SoftTable


def predict_repacked(
    hidden: Tensor, head: NativeVocabulary, embedding: NativeVocabulary, how: PredictOptions
) -> Prediction:
    """As `predict`, for rows that all have a top-k or all have none; hidden fp32 on the CPU.

    Unless `how.exact`, the soft embedding leaves out at most `native.DROP` of a row's mass. How places are cut into
    pieces changes no bit of the result.
    """
    shape = hidden.shape[:2]
    whole = _Places.of(hidden, how)
    soft = torch.empty_like(whole.hidden) if how.soft else None
    size = _at_once(how)
    pieces = [slice(i, i + size) for i in range(0, len(whole.hidden), size)]
    parts = [
        _predict(whole.piece(piece), head, embedding, how, None if soft is None else soft[piece])
        for piece in pieces
    ]
    columns = (torch.cat(c) if len(c) > 1 else c[0] for c in zip(*parts, strict=True))
    sampled, argmax, entropy, logprob, *ranked = (c.unflatten(0, shape) for c in columns)
    if soft is not None:
        soft = soft.mul_(hidden.shape[2] ** 0.5).unflatten(0, shape)
    return Prediction(sampled, argmax, entropy, logprob, soft, *ranked)


@dataclass(frozen=True)
class _Places:
    """What `native.head` wants of each of T places: [T, ...]."""

    hidden: Tensor
    temperature: Tensor
    gumbel: Tensor
    uniform: Tensor
    tail: Tensor
    top_k: Tensor | None

    @classmethod
    def of(cls, hidden: Tensor, how: PredictOptions) -> _Places:
        def each(values: Sequence[object]) -> Tensor:
            return torch.tensor(list(values)).repeat_interleave(hidden.shape[1])

        return cls(
            hidden.flatten(0, 1),
            each(how.temperature),
            torch.cat([d.gumbel for d in how.draws]),
            torch.cat([d.uniform for d in how.draws]),
            each(how.tail_correction),
            each(how.top_k).int() if how.cut else None,
        )

    def piece(self, places: slice) -> _Places:
        return _Places(
            self.hidden[places],
            self.temperature[places],
            self.gumbel[places],
            self.uniform[places],
            self.tail[places],
            None if self.top_k is None else self.top_k[places],
        )


def _at_once(how: PredictOptions) -> int:
    return max(64, min(PLACES, CANDIDATES // (16 * max((1, *how.top_k)))))


def _predict(
    places: _Places,
    head: NativeVocabulary,
    embedding: NativeVocabulary,
    how: PredictOptions,
    soft: Tensor | None,
) -> tuple[Tensor, ...]:
    """(sampled, argmax, entropy, logprob), and if wanted (top tokens, top log-probabilities); fills `soft`."""
    cut = places.top_k is not None
    stats = native.head(
        places.hidden, head.head, softcap=how.softcap, temperature=places.temperature, gumbel=places.gumbel,
        uniform=places.uniform, keep=how.soft or (how.top > 0 and not cut),
        top_k=places.top_k, named=how.top if cut else 0,
    )  # fmt: skip
    if soft is not None and stats.logits is not None:
        drop = 0.0 if how.exact else native.DROP
        native.soft_embed(stats.logits, embedding.soft_table, drop=drop, out=soft)
    entropy = stats.entropy
    if stats.top_k_entropy is not None:
        entropy = torch.where(places.tail, entropy, stats.top_k_entropy)
    found = (stats.sampled, stats.argmax, entropy, stats.logprob)
    if not how.top:
        return found
    if stats.top_tokens is not None and stats.top_logprobs is not None:
        return (*found, stats.top_tokens, stats.top_logprobs)
    assert stats.logits is not None
    return (*found, *_ranked(stats.logits, how.top))


def _ranked(logits: native.StoredLogits, top: int) -> tuple[Tensor, Tensor]:
    """The most probable tokens and their log-probabilities, from the logits stored in fp16; a row at a time."""
    tokens, values = [], []
    for row in range(len(logits.lse)):
        below = logits.store[row].view(torch.float16).float().view(-1, native.SAMPLE_TILE)
        whole = (logits.peak[row][:, None] + below).flatten()[: logits.vocabulary]
        best = whole.topk(min(top, logits.vocabulary))
        tokens.append(best.indices)
        values.append(best.values - logits.lse[row])
    return torch.stack(tokens), torch.stack(values)


__all__ = ["NativeVocabulary", "predict_repacked"]
