"""`ops.predict.predict` on native kernels: head and sampling in one pass, the soft embedding in a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..predict import Prediction, PredictOptions
from ..restrict import Restriction
from ..targets import flat
from . import head as native
from .repacked import RepackedMatrix

# Places predicted at once: the logits stored for their soft embedding take 512 KiB each at 262,144 columns,
# 256 MiB in all. Pieces of 256 to 1024 places take the same time.
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

    Unless `how.exact`, the soft embedding leaves out at most `native.DROP` of a row's mass. How places are
    cut into pieces changes no bit of the result.
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
    sampled, argmax, entropy, logprob, lse, tokens, logprobs, *chosen = (
        c.unflatten(0, shape) for c in columns
    )
    if soft is not None:
        soft = soft.mul_(hidden.shape[2] ** 0.5).unflatten(0, shape)
    made = Prediction(sampled, argmax, entropy, logprob, soft)
    if how.top:
        made = replace(made, top_tokens=tokens, top_logprobs=logprobs)
    if how.targets is not None:
        made = replace(made, target_logprob=chosen[0], target_rank=chosen[1])
    return made if how.restriction is None else replace(made, impossible=lse == -torch.inf)


@dataclass(frozen=True)
class _Places:
    """What `native.head` wants of each of T places: [T, ...]."""

    hidden: Tensor
    temperature: Tensor
    gumbel: Tensor
    uniform: Tensor
    tail: Tensor
    top_k: Tensor | None
    restriction: native.RowRestriction | None
    targets: Tensor | None

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
            None if how.restriction is None else _row_restriction(how.restriction, hidden.shape[1]),
            None if how.targets is None else torch.tensor(flat(how.targets)),
        )

    def piece(self, places: slice) -> _Places:
        return _Places(
            self.hidden[places],
            self.temperature[places],
            self.gumbel[places],
            self.uniform[places],
            self.tail[places],
            None if self.top_k is None else self.top_k[places],
            None if self.restriction is None else self.restriction.rows(places),
            None if self.targets is None else self.targets[places],
        )


def _at_once(how: PredictOptions) -> int:
    return max(64, min(PLACES, CANDIDATES // (16 * max((1, how.top, *how.top_k)))))


def _predict(
    places: _Places,
    head: NativeVocabulary,
    embedding: NativeVocabulary,
    how: PredictOptions,
    soft: Tensor | None,
) -> tuple[Tensor, ...]:
    """(sampled, argmax, entropy, logprob, log-sum-exp, top tokens, top log-probabilities, those of the
    targets, their ranks); fills `soft`."""
    stats = native.head(
        places.hidden, head.head, softcap=how.softcap, temperature=places.temperature, gumbel=places.gumbel,
        uniform=places.uniform, keep=how.soft, top_k=places.top_k, named=how.top,
        restriction=places.restriction, targets=places.targets,
    )  # fmt: skip
    if soft is not None and stats.logits is not None:
        drop = 0.0 if how.exact else native.DROP
        native.soft_embed(stats.logits, embedding.soft_table, drop=drop, out=soft)
    entropy = stats.entropy
    if stats.top_k_entropy is not None:
        entropy = torch.where(places.tail, entropy, stats.top_k_entropy)
    top = (stats.top_tokens, stats.top_logprobs, stats.target_logprob, stats.target_rank)
    return stats.sampled, stats.argmax, entropy, stats.logprob, stats.lse, *top


def _row_restriction(restriction: Restriction, places: int) -> native.RowRestriction:
    """Of each place, rows end to end. A row's places share its biases."""
    made, listed = native.RowRestriction(), [pair for each in restriction.biases for pair in each]
    if listed:
        ends = torch.tensor([0, *(len(each) for each in restriction.biases)]).cumsum(0).int()
        made = replace(
            made,
            spans=torch.stack((ends[:-1], ends[1:]), -1).repeat_interleave(places, 0),
            tokens=torch.tensor([token for token, _ in listed], dtype=torch.int32),
            values=torch.tensor([value for _, value in listed], dtype=torch.float32),
        )
    if restriction.allowed is not None:
        made = replace(made, allowed=restriction.allowed.flatten().int(), bits=restriction.bits)
    return made


__all__ = ["NativeVocabulary", "predict_repacked"]
