"""`ops.predict.predict` on native kernels: head and sampling in one pass, the soft embedding in a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .native import predict as native
from .predict import Draw, Prediction

if TYPE_CHECKING:
    from .packed_layers import PackedVocabulary


def predict_packed(
    hidden: Tensor,
    head: PackedVocabulary,
    embedding: PackedVocabulary,
    *,
    softcap: float,
    temperature: Sequence[float],
    draws: Sequence[Draw],
    soft: bool,
    top: int,
    exact: bool,
) -> Prediction:
    """As `predict`; hidden fp32 on the CPU. Unless `exact`, the soft embedding leaves out at most `native.DROP` of a
    row's mass.
    """
    shape = hidden.shape[:2]
    flat = hidden.flatten(0, 1)
    stats = native.head(
        flat,
        head.head,
        softcap=softcap,
        temperature=torch.tensor(list(temperature)).repeat_interleave(shape[1]),
        gumbel=torch.cat([d.gumbel for d in draws]),
        uniform=torch.cat([d.uniform for d in draws]),
        keep=soft or top > 0,
    )
    expected = None
    if soft and stats.logits is not None:
        expected, _ = native.soft_embed(
            stats.logits, embedding.soft_table, drop=0.0 if exact else native.DROP
        )
        expected = expected.mul_(flat.shape[1] ** 0.5).unflatten(0, shape)
    fields = (stats.sampled, stats.argmax, stats.entropy, stats.logprob)
    sampled, argmax, entropy, logprob = (x.unflatten(0, shape) for x in fields)
    prediction = Prediction(sampled, argmax, entropy, logprob, expected)
    if not top or stats.logits is None:
        return prediction
    tokens, values = _ranked(stats.logits, top, shape)
    return replace(prediction, top_tokens=tokens, top_logprobs=values)


def _ranked(logits: native.Logits, top: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The most probable tokens and their log-probabilities, from the logits kept in fp16; a row at a time."""
    tokens, values = [], []
    for row in range(len(logits.lse)):
        below = logits.store[row].view(torch.float16).float().view(-1, native.SAMPLE_TILE)
        whole = (logits.peak[row][:, None] + below).flatten()[: logits.vocabulary]
        best = whole.topk(min(top, logits.vocabulary))
        tokens.append(best.indices)
        values.append(best.values - logits.lse[row])
    return torch.stack(tokens).unflatten(0, shape), torch.stack(values).unflatten(0, shape)


__all__ = ["predict_packed"]
