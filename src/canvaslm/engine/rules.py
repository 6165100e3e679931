"""The tokens that a request favours or forbids, as the biases and bit rows that `ops.predict` reads.

A canvas never lacks a token for a place: `check_rules` sees to it before the request is taken, so that
nothing of it need be read back from the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..model import ModelConfig
from ..ops.restrict import WORD, Biases, bit_rows
from ..types import MAX_BIASES, MAX_WATCHED, Request

_EVERYTHING = -1  # what `ops.predict` calls a place that may take any token


@dataclass(frozen=True)
class RowRules:
    """Of one request, where the model is. `bits` int32 [n, words]: the first row of `common` is for places
    where the answer must not end yet, the second, where there is one, for all that follow; rows behind these
    are for single places."""

    biases: Biases
    bits: Tensor | None
    least: int  # tokens that the first row is for
    common: int = 0
    own: Mapping[int, int] = field(default_factory=dict)  # place of the answer -> its row

    @classmethod
    def of(cls, request: Request, least: int, config: ModelConfig, device: torch.device) -> RowRules | None:
        """None where nothing is restricted. least: tokens that the answer has before its end."""
        rules = request.rules
        if rules.allowed is not None:
            least = max(least, 1)
        rows = [_before_the_end(request, config)] if least else []
        if rules.allowed is not None:
            rows.append(rows[0].clone())
            rows[1][list(_endings(request, config))] = True
        sets = {tokens: len(rows) + i for i, tokens in enumerate(dict.fromkeys(request.allowed.values()))}
        bits = [*bit_rows(torch.stack(rows))] if rows else []
        bits += [_words(tokens, -(-config.vocab_size // WORD)) for tokens in sets]
        if not bits:
            return cls(rules.biases, None, 0) if rules.biases else None
        own = {place: sets[tokens] for place, tokens in request.allowed.items()}
        return cls(rules.biases, torch.stack(bits).to(device), least, len(rows), own)

    def places(self, written: int, first: int, length: int, start: int = 0) -> list[int]:
        """Each place's row of `bits` on a canvas of `length` places, or -1: of an answer that has `written`
        tokens before it, and begins at its place `first`. start: the answer's place that stands first."""
        if self.bits is None:
            return [_EVERYTHING] * length
        after = 1 if self.common > 1 else _EVERYTHING
        rows = [0 if written + place - first < self.least else after for place in range(length)]
        return [self.own.get(start + place, row) for place, row in enumerate(rows)]


def speaking(
    rules: RowRules | None,
    request: Request,
    place: int,
    blank: Iterable[int],
    config: ModelConfig,
    device: torch.device,
) -> RowRules | None:
    """The rules with one more: the token at this place of the answer neither ends it nor is `blank`.

    Where that leaves no token it may be blank; the rules as they were, where it leaves none even so.
    """
    row = _before_the_end(request, config)
    row[list(_never(request, config))] = False
    said = row.clone()
    said[list(blank)] = False
    if not row.any():
        return rules
    made = rules or RowRules((), None, 0)
    bits = bit_rows((said if said.any() else row)[None]).to(device)
    if made.bits is not None:
        bits = torch.cat((made.bits, bits))
    return replace(made, bits=bits, own={**made.own, place: len(bits) - 1})


def masked(
    rules: RowRules,
    request: Request,
    masks: Mapping[int, bytes],
    rows: Mapping[int, int],
    config: ModelConfig,
) -> RowRules:
    """The rules with masks {place of the answer: the tokens that it may take}. rows: of those places, as
    `RowRules.places` says without masks. A place keeps its rule where a mask would leave it no token."""
    possible = torch.ones(1, config.vocab_size, dtype=torch.bool)
    possible[:, list(_never(request, config))] = False
    (usual,) = bit_rows(possible)
    bits = [] if rules.bits is None else [*rules.bits]
    known: dict[tuple[bytes, int], int] = {}
    own = dict(rules.own)
    for place, mask in masks.items():
        key = (mask, rows[place])
        if key not in known:
            row = _words(mask, len(usual)) & usual
            row = row if key[1] == _EVERYTHING else row & bits[key[1]]
            known[key] = len(bits) if row.any() else key[1]
            bits += [row] if row.any() else []
        own[place] = known[key]
    return replace(rules, bits=torch.stack(bits), own=own) if bits else rules


def _never(request: Request, config: ModelConfig) -> set[int]:
    """Tokens that no place may take."""
    never = {token for token, value in request.rules.biases if value == -math.inf}
    return never if config.facts.mask_token_id is None else never | {config.facts.mask_token_id}


def _before_the_end(request: Request, config: ModelConfig) -> Tensor:
    """Bool [V]: tokens of which an answer can consist."""
    allowed = request.rules.allowed
    row = torch.full((config.vocab_size,), allowed is None)
    if allowed is not None:
        row[list(allowed)] = True
    row[list(_endings(request, config))] = False
    return row


def _words(tokens: bytes, count: int) -> Tensor:
    """Bits, the lowest of a byte first, as int32 words."""
    return torch.frombuffer(bytearray(tokens.ljust(count * 4, b"\0")), dtype=torch.int32)


def _endings(request: Request, config: ModelConfig) -> set[int]:
    """Tokens that end an answer, and the one that stands behind its end."""
    return {*request.eos_token_ids, config.pad_token_id}


def check_rules(request: Request, least: int, config: ModelConfig) -> None:
    """Raises UsageError for tokens that are none, and for rules that leave a place without any token."""
    rules, vocabulary = request.rules, config.vocab_size
    _check_places(request, vocabulary)
    if len(rules.biases) > MAX_BIASES:
        raise UsageError(f"logit_bias has {len(rules.biases)} tokens: at most {MAX_BIASES}", "logit_bias")
    for token, value in rules.biases:
        _check_token(token, vocabulary, "logit_bias")
        if math.isnan(value) or value == math.inf:
            raise UsageError(f"logit_bias of token {token} is {value}: give a number or -inf", "logit_bias")
    never = _never(request, config)
    for token in rules.allowed or ():
        _check_token(token, vocabulary, "allowed_token_ids")
    if rules.allowed is not None and not set(rules.allowed) - never - _endings(request, config):
        raise UsageError(
            "allowed_token_ids names no token that an answer can have: give at least one that is neither "
            "forbidden nor an end of turn",
            "allowed_token_ids",
        )
    closed = never | (_endings(request, config) if least else set())
    if rules.allowed is None and len(closed) >= vocabulary:
        raise UsageError("logit_bias forbids every token: leave some", "logit_bias")


def _check_places(request: Request, vocabulary: int) -> None:
    for tokens in set(request.allowed.values()):
        number = int.from_bytes(tokens, "little")
        if not number or number >> vocabulary:
            raise UsageError(
                f"`allowed` names no token, or one outside the vocabulary of {vocabulary}: set a bit for "
                "each token that a place may take",
                "allowed",
            )


def check_watched(watched: Mapping[int, tuple[int, ...]], vocabulary: int) -> None:
    """Raises UsageError for tokens that are none, and for too many."""
    count = sum(map(len, watched.values()))
    if count > MAX_WATCHED:
        raise UsageError(f"watched has {count} tokens: at most {MAX_WATCHED}", "watched")
    for place, tokens in watched.items():
        if not tokens:
            raise UsageError(f"watched names no token of place {place}: name one at least", "watched")
        for token in tokens:
            _check_token(token, vocabulary, "watched")


def _check_token(token: int, vocabulary: int, name: str) -> None:
    if not 0 <= token < vocabulary:
        raise UsageError(f"{name}: token {token} is not in 0 .. {vocabulary - 1}", name)


def joined(rows: Sequence[tuple[RowRules | None, list[int]]], device: torch.device) -> dict[str, Any]:
    """What `ops.predict` needs to know of the rules of R rows: biases, bits, and allowed [R, C]. rows: each
    row's rules, and the rows of their bits that its places have (-1 everywhere without rules)."""
    known = [rules for rules, _ in rows if rules is not None]
    if not known:
        return {}
    made: dict[str, Any] = {
        "biases": [() if rules is None else rules.biases for rules, _ in rows], "check": False
    }  # fmt: skip
    tables = [rules.bits for rules in known if rules.bits is not None]
    if not tables:
        return made
    allowed, start = [], 0
    for rules, places in rows:
        allowed.append([place + start if place >= 0 else place for place in places])
        start += 0 if rules is None or rules.bits is None else len(rules.bits)
    return {**made, "bits": torch.cat(tables), "allowed": torch.tensor(allowed, device=device)}


__all__ = ["RowRules", "check_rules", "check_watched", "joined", "masked", "speaking"]
