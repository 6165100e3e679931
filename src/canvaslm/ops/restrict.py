"""What a caller favours or forbids: biases for single tokens of a row, and for each
place the tokens it may take.

The tokens of a place are a row of a small table of bits, one bit a token (32 KiB a row at 262,144 tokens,
where a dense bias would take 268 MB a canvas); places name their row of it. Everything is applied to the
processed logits, after the division by temperature, so that entropy, log-probabilities, argmax, sample, top-k
and soft embedding all see it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError

WORD = 32
Biases = Sequence[tuple[int, float]]


def bit_rows(allowed: Tensor) -> Tensor:
    """Bool [n, V] -> int32 [n, ceil(V / 32)]: token t is bit t % 32 of word t // 32, padding bits are 0."""
    rows, vocabulary = allowed.shape
    padded = torch.zeros(rows, -(-vocabulary // WORD), WORD, dtype=torch.int64, device=allowed.device)
    padded.view(rows, -1)[:, :vocabulary] = allowed
    words = (padded << torch.arange(WORD, device=allowed.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def allowed_tokens(bits: Tensor, start: int, stop: int) -> Tensor:
    """Bool [n, stop - start] from int32 bit rows: which of the tokens start .. stop - 1 are allowed."""
    first = start // WORD
    words = bits[:, first : -(-stop // WORD), None] >> torch.arange(
        WORD, dtype=torch.int32, device=bits.device
    )
    offset = start - first * WORD
    return (words & 1).flatten(1)[:, offset : offset + stop - start].bool()


@dataclass(frozen=True)
class Restriction:
    """Of R rows of C places: made and checked by `of`."""

    biases: tuple[tuple[tuple[int, float], ...], ...]  # of each row, ascending by token, each token once
    allowed: Tensor | None  # int64 [R, C]: a row of `bits`, or -1 for all tokens
    bits: Tensor | None  # int32 [n, ceil(V / 32)]

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        vocabulary: int,
        biases: Sequence[Biases] | None,
        allowed: Tensor | None,
        bits: Tensor | None,
        forbidden: int | None = None,
    ) -> Restriction | None:
        """None when nothing is restricted. `shape` is (R, C).

        biases: R lists of (token, value), -inf forbids, values for one token add up. allowed: integers [R, C]
        on the device of the logits. bits: int32 or uint32. forbidden: a token that no place may take. Raises
        UsageError or ValueError naming what does not fit.
        """
        if (allowed is None) != (bits is None):
            raise ValueError("allowed and bits: a place's row of bits and the table of them go together")
        if allowed is not None and bits is not None:
            words = -(-vocabulary // WORD)
            if tuple(allowed.shape) != shape or allowed.dtype.is_floating_point:
                raise ValueError(f"allowed: expected integers {list(shape)}, got {list(allowed.shape)}")
            if bits.dim() != 2 or bits.shape[1] != words or bits.dtype not in (torch.int32, torch.uint32):
                raise ValueError(f"bits: expected int32 [rows, {words}], got {bits.dtype} {list(bits.shape)}")
            allowed, bits = allowed.long(), bits.view(torch.int32)
        if biases is not None and len(biases) != shape[0]:
            raise ValueError(f"biases: expected {shape[0]} lists, got {len(biases)}")
        everywhere = [] if forbidden is None else [(forbidden, -math.inf)]
        merged = tuple(_merged([*row, *everywhere], vocabulary) for row in biases or [()] * shape[0])
        if allowed is None and not any(merged):
            return None
        return cls(merged, allowed, bits)

    def rows(self, rows: Sequence[int]) -> Restriction | None:
        """That of these rows, or None when they have none."""
        biases = tuple(self.biases[i] for i in rows)
        if self.allowed is None:
            return Restriction(biases, None, None) if any(biases) else None
        return Restriction(biases, self.allowed[list(rows)], self.bits)

    def on(self, places: int, device: torch.device) -> TileRestriction:
        """Ready for logits of these rows with `places` places each."""
        return TileRestriction(self, places, device)


def _merged(biases: Biases, vocabulary: int) -> tuple[tuple[int, float], ...]:
    """Ascending by token, values of equal tokens added up."""
    values: dict[int, float] = {}
    for token, value in biases:
        if not 0 <= token < vocabulary:
            raise UsageError(f"token {token} of a bias is not in 0 .. {vocabulary - 1}", "logit_bias")
        if math.isnan(value) or value == math.inf:
            raise UsageError(f"the bias of token {token} is {value}: give a number or -inf", "logit_bias")
        values[token] = values.get(token, 0.0) + value
    return tuple(sorted(values.items()))


class TileRestriction:
    """Applies a restriction to tile after tile of the logits; nothing of it is read back to the host."""

    def __init__(self, restriction: Restriction, places: int, device: torch.device) -> None:
        self.places, self.bits = places, restriction.bits
        listed = sorted((t, row, v) for row, each in enumerate(restriction.biases) for t, v in each)
        self.tokens = [token for token, _, _ in listed]
        self.token = torch.tensor(self.tokens, dtype=torch.int64, device=device)
        self.row = torch.tensor([row for _, row, _ in listed], dtype=torch.int64, device=device)
        self.value = torch.tensor([v for _, _, v in listed], dtype=torch.float32, device=device)
        self.allowed = None if restriction.allowed is None else restriction.allowed.flatten()

    def apply(self, logits: Tensor, start: int) -> None:
        """Changes logits [R * C, columns] of the tokens from `start` on, in place."""
        stop = start + logits.shape[1]
        first, last = bisect_left(self.tokens, start), bisect_left(self.tokens, stop)
        if first < last:
            each = slice(first, last)
            rows = logits.view(-1, self.places, logits.shape[1])
            rows[self.row[each], :, self.token[each] - start] += self.value[each, None]
        if self.allowed is not None and self.bits is not None:
            table = allowed_tokens(self.bits, start, stop)
            table = torch.cat((table, table.new_ones(1, table.shape[1])))  # row -1: everything
            logits.masked_fill_(~table[self.allowed], -torch.inf)


def restrict(
    logits: Tensor, biases: Biases = (), allowed: Tensor | None = None, bits: Tensor | None = None
) -> Tensor:
    """Processed logits [C, V] of one row with its restrictions applied: the readable twin. allowed: [C]."""
    logits, vocabulary = logits.clone(), logits.shape[1]
    for token, value in biases:
        logits[:, token] += value
    if allowed is not None and bits is not None:
        table = allowed_tokens(bits, 0, vocabulary)
        for place, row in enumerate(allowed.tolist()):
            if row >= 0:
                logits[place, ~table[row]] = -torch.inf
    return logits


__all__ = ["Biases", "Restriction", "TileRestriction", "allowed_tokens", "bit_rows", "restrict"]
