"""Head, sampling statistics and the soft embedding over a repacked vocabulary; twin:
`ops.predict.predict`."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..restrict import WORD
from .loader import library
from .products import check, pointer
from .repacked import RepackedMatrix, RowTable
from .structures import HeadCall, Matrix, RestrictionCall, SoftCall

SAMPLE_TILE = 1024
# Probability mass a row's soft embedding may leave out: errs less than rounding the embedding to bf16 does.
DROP = 5e-4


@dataclass(frozen=True)
class RowRestriction:
    """What is forbidden or favoured in each of R rows of `head`; twin: `ops.restrict.restrict`.

    spans [R, 2] int32: a row's biases are those between the two numbers in tokens (int32, ascending
    within a row) and values (fp32, -inf forbids). allowed [R] int32: a row of bits [n, ceil(V / 32)]
    int32, or -1 for every token.
    """

    spans: Tensor | None = None
    tokens: Tensor | None = None
    values: Tensor | None = None
    allowed: Tensor | None = None
    bits: Tensor | None = None

    def rows(self, rows: slice) -> RowRestriction:
        """That of these rows."""
        return replace(
            self,
            spans=None if self.spans is None else self.spans[rows],
            allowed=None if self.allowed is None else self.allowed[rows],
        )

    def checked(self, rows: int, vocabulary: int) -> RowRestriction:
        """Contiguous and inside its bounds. Raises ValueError naming what is not: the
        kernel reads where it points."""
        spans, tokens, values, allowed, bits = self.spans, self.tokens, self.values, self.allowed, self.bits
        if spans is not None:
            if tokens is None or values is None:
                raise ValueError("tokens, values: biases need both")
            spans = check("spans", spans, (rows, 2), torch.int32)
            tokens, values = (
                check("tokens", tokens, (None,), torch.int32),
                check("values", values, (len(tokens),)),
            )
            if rows and not (int(spans.min()) >= 0 and int(spans.max()) <= len(tokens)):
                raise ValueError(f"spans: must lie in 0 .. {len(tokens)}")
            if len(tokens) and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocabulary):
                raise ValueError(f"tokens: must lie in 0 .. {vocabulary - 1}")
        if allowed is not None:
            if bits is None:
                raise ValueError("bits: allowed names rows of them")
            allowed = check("allowed", allowed, (rows,), torch.int32)
            bits = check("bits", bits, (None, -(-vocabulary // WORD)), torch.int32)
            if rows and not (int(allowed.min()) >= -1 and int(allowed.max()) < len(bits)):
                raise ValueError(f"allowed: must lie in -1 .. {len(bits) - 1}")
        return RowRestriction(spans, tokens, values, allowed, bits)

    def structure(self) -> RestrictionCall:
        """For the kernel; keeps nothing alive."""
        words = 0 if self.bits is None else self.bits.shape[1]
        return RestrictionCall(
            pointer(self.spans), pointer(self.tokens), pointer(self.values), pointer(self.allowed),
            pointer(self.bits),
            words,
        )  # fmt: skip


@dataclass(frozen=True)
class StoredLogits:
    """What `head` stores for `soft_embed`: fp16 logits below their tile's maximum, and every
    tile's maximum and mass.

    With a top-k, of the k largest alone: tiles without such tokens have mass 0, and their part of
    `store` is not written. `store` is memory that the next `head` may use again once this object is
    gone: copy what is to outlive it.
    """

    store: Tensor  # int16 bits of fp16 [R, tiles * SAMPLE_TILE]
    peak: Tensor  # fp32 [R, tiles]
    mass: Tensor  # fp32 [R, tiles]
    lse: Tensor  # fp32 [R]
    entropy: Tensor  # fp32 [R]
    vocabulary: int
    top_k: Tensor | None = None  # int32 [R], or all tokens


class _SpareStore:
    """Holds the largest store that was given back: at 134 MB a canvas, fresh pages would
    cost 60 ms of every step."""

    def __init__(self) -> None:
        self._lock, self._spare = threading.Lock(), torch.empty(0, dtype=torch.int16)

    def take(self, count: int) -> Tensor:
        with self._lock:
            spare, self._spare = self._spare, torch.empty(0, dtype=torch.int16)
        return spare if spare.numel() >= count else torch.empty(count, dtype=torch.int16)

    def give_back(self, store: Tensor) -> None:
        with self._lock:
            if store.numel() > self._spare.numel():
                self._spare = store


_spare_store = _SpareStore()


@dataclass(frozen=True)
class Statistics:
    """Per row: sampled and argmax int64, entropy (nats) and the argmax's log-probability
    fp32; logits when stored.

    With a top-k the entropy of the k largest too. The best tokens are of all, with their log-probabilities.
    """

    sampled: Tensor
    argmax: Tensor
    entropy: Tensor
    logprob: Tensor
    lse: Tensor  # log-sum-exp of what the token is drawn from; -inf where every token is forbidden
    logits: StoredLogits | None
    top_k_entropy: Tensor | None
    top_tokens: Tensor  # int64 [R, named]
    top_logprobs: Tensor  # fp32 [R, named], of all tokens
    target_logprob: Tensor  # fp32 [R], of all tokens; 0 without a target
    target_rank: Tensor  # int64 [R]; 0 without a target


def head(
    hidden: Tensor,
    weight: RepackedMatrix,
    *,
    softcap: float,
    temperature: Tensor,
    gumbel: Tensor,
    uniform: Tensor,
    restriction: RowRestriction | None = None,
    keep: bool = True,
    top_k: Tensor | None = None,
    named: int = 0,
    targets: Tensor | None = None,
) -> Statistics:
    """Statistics of softmax((softcap * tanh(hidden @ weight.T / softcap)) /
    temperature), row by row, restricted.

    hidden [R, H]; weight [V, H]; temperature [R] > 0; gumbel [R, tiles] and uniform [R] float64 as
    `ops.predict.draw` makes them. restriction: the logits are changed by it before anything else. softcap 0:
    none. `keep` stores the logits (2 bytes each).

    top_k int32 [R], each below V: the token is drawn from, and what is stored has, each row's k largest
    logits alone, of equal ones those of lower ids. `named`: names so many of the most probable tokens of all,
    with exact fp32 values; where fewer are allowed, the rest are token 0 with -inf. `targets` int64 [R]:
    tokens whose log-probability and rank are wanted, -1 for none; twin: `ops.targets`.
    """
    hidden = check("hidden", hidden, (None, weight.k))
    rows, tiles = len(hidden), -(-weight.n // SAMPLE_TILE)
    temperature = _check_temperature(temperature, rows)
    gumbel = check("gumbel", gumbel, (rows, tiles))
    uniform = check("uniform", uniform, (rows,), torch.float64)
    restriction = (restriction or RowRestriction()).checked(rows, weight.n)
    top_k, targets = _check_top_k(top_k, rows, weight.n), _check_targets(targets, rows, weight.n)
    _check_named(named, weight.n)
    size = rows * tiles * SAMPLE_TILE
    whole = _spare_store.take(size) if keep else None
    store = None if whole is None else whole[:size].view(rows, -1)
    peak, mass = torch.empty(rows, tiles), torch.empty(rows, tiles)
    sampled, argmax = torch.empty(2, rows, dtype=torch.int64)
    entropy, logprob, lse, top_k_entropy = torch.empty(4, rows)
    top_tokens, top_logprobs = torch.empty(rows, named, dtype=torch.int64), torch.empty(rows, named)
    target_logprob, target_rank = torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
    call = HeadCall(
        Matrix(weight.code, weight.n, weight.k, weight.data), pointer(hidden), rows, softcap,
        pointer(temperature), restriction.structure(), pointer(gumbel), pointer(uniform), pointer(store),
        pointer(peak), pointer(mass), pointer(sampled), pointer(argmax), pointer(entropy), pointer(logprob),
        pointer(lse), pointer(top_k), pointer(top_k_entropy), named, pointer(top_tokens),
        pointer(top_logprobs), pointer(targets), pointer(target_logprob), pointer(target_rank),
    )  # fmt: skip
    if rows:
        library().canvas_head(ctypes.byref(call))
    logits = None
    if store is not None and whole is not None:
        flat = entropy if top_k is None else top_k_entropy
        logits = StoredLogits(store, peak, mass, lse, flat, weight.n, top_k)
        weakref.finalize(logits, _spare_store.give_back, whole)
    return Statistics(
        sampled, argmax, entropy, logprob, lse, logits, None if top_k is None else top_k_entropy,
        top_tokens, top_logprobs, target_logprob, target_rank,
    )  # fmt: skip


def _check_temperature(temperature: Tensor, rows: int) -> Tensor:
    temperature = check("temperature", temperature, (rows,))
    if rows and not bool((temperature > 0).all()):
        raise ValueError("temperature: must be positive in every row")
    return temperature


def _check_named(named: int, vocabulary: int) -> None:
    if not 0 <= named <= vocabulary:
        raise ValueError(f"named = {named}: must lie in 0 .. {vocabulary}")


def _check_targets(targets: Tensor | None, rows: int, vocabulary: int) -> Tensor | None:
    if targets is None:
        return None
    targets = check("targets", targets, (rows,), torch.int64)
    if rows and not bool(((targets >= -1) & (targets < vocabulary)).all()):
        raise ValueError(f"targets: must lie in -1 .. {vocabulary - 1}")
    return targets


def _check_top_k(top_k: Tensor | None, rows: int, vocabulary: int) -> Tensor | None:
    if top_k is None:
        return None
    top_k = check("top_k", top_k, (rows,), torch.int32)
    if rows and not bool(((top_k > 0) & (top_k < vocabulary)).all()):
        raise ValueError(f"top_k: must lie between 1 and {vocabulary - 1} in every row")
    return top_k


@dataclass(frozen=True)
class SoftTable:
    """An embedding table for `soft_embed`: its rows as stored, and (for large ones)
    repacked the other way round."""

    rows: RowTable
    transposed: RepackedMatrix | None = None

    @classmethod
    def build(cls, rows: RowTable, transposed: Callable[[str], RepackedMatrix] | None = None) -> SoftTable:
        """INT8 columns for quantised tables (1.03 bytes a weight), fp32 ones for float tables up to 64 MiB.

        `transposed` makes the table of a kind; None repacks it here.
        """
        floats = rows.format in ("F32", "F16", "BF16") and rows.rows * rows.columns <= 1 << 24
        kind = "F32" if floats else "INT8"
        if transposed is not None:
            return cls(rows, transposed(kind))
        return cls(rows, RepackedMatrix.transposed(rows.format, rows.raw, rows.rows, rows.columns, kind=kind))


@dataclass(frozen=True)
class SoftEmbedCounts:
    """How `soft_embed` did it: table rows added one by one, and rows that took the dense product."""

    gathered: int
    dense: int


def soft_embed(
    logits: StoredLogits, table: SoftTable, *, drop: float = DROP, out: Tensor | None = None
) -> tuple[Tensor, SoftEmbedCounts]:
    """sum_v p_v E[v] per row, fp32 [R, H]: softmax over what `head` stored, times the embedding
    table. Into `out` if given.

    At most `drop` of a row's mass is left out, and only where that makes its sum sparse; drop=0 leaves out
    nothing and rounds p to 15 bits instead of 7 in the dense product. Rows with a top-k of up to 2400 are
    always summed one by one. Bounds on the relative error of a row: drop + 1e-3 for rows summed one by one;
    about 1 % (int8 columns, 7-bit p) for dense rows, 0.7 % with drop=0, 1e-3 with fp32 columns.
    """
    if table.rows.rows != logits.vocabulary:
        raise ValueError(
            f"the table has {table.rows.rows} rows, the logits {logits.vocabulary} columns: they must agree"
        )
    if not 0 <= drop < 1:
        raise ValueError(f"drop: must lie in [0, 1), not {drop}")
    count, width = len(logits.lse), table.rows.columns
    if out is None:
        out = torch.empty(count, width)
    elif out.shape != (count, width) or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"out: expected contiguous fp32 [{count}, {width}]")
    gathered, dense = ctypes.c_int64(), ctypes.c_int64()
    t = table.transposed
    matrix = Matrix(t.code, t.n, t.k, t.data) if t is not None else Matrix(0, 0, 0, None)
    call = SoftCall(
        pointer(logits.store), pointer(logits.peak), pointer(logits.mass), pointer(logits.lse),
        pointer(logits.entropy),
        pointer(logits.top_k), count, logits.vocabulary, width, table.rows.type_id, pointer(table.rows.raw),
        matrix, drop,
        pointer(out), ctypes.addressof(gathered), ctypes.addressof(dense),
    )  # fmt: skip
    if count:
        library().canvas_soft(ctypes.byref(call))
    return out, SoftEmbedCounts(gathered.value, dense.value)


__all__ = [
    "DROP",
    "SAMPLE_TILE",
    "RowRestriction",
    "SoftEmbedCounts",
    "SoftTable",
    "Statistics",
    "StoredLogits",
    "head",
    "soft_embed",
]
