"""A tokenizer's tokens as constraints see them: each a run of symbols.

A symbol is a byte of UTF-8, 0 to 255, or a marker, 256 and up: a control token that has a meaning in the
language of answers, such as the two around a tool call. No byte is a marker, so no text becomes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .token_tree import Level, tree_of

BYTES, MARKERS = 256, 16
SYMBOLS = BYTES + MARKERS

TokenSymbols = bytes | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What of a tokenizer a constraint needs; built once a model with `Vocabulary.of`, and shared."""

    token_bytes: tuple[TokenSymbols, ...]  # per token; b"" for those that take no part in any language
    byte_ids: NDArray[
        np.int64
    ]  # [SYMBOLS]: the token that is this symbol and no more, -1 where there is none
    ends: tuple[int, ...]  # tokens that end an answer; the first is the one that is written
    pad: int  # may stand behind the end on a canvas, besides the ends
    markers: Mapping[str, int]  # text of a control token -> its symbol
    names: tuple[bytes, ...]  # what each token is written as, control tokens too
    controls: tuple[int, ...]  # tokens that are not text

    @classmethod
    def of(
        cls,
        token_bytes: Sequence[TokenSymbols],
        controls: Sequence[int],
        names: Sequence[bytes],
        ends: Sequence[int],
        pad: int,
        markers: Mapping[str, int],
    ) -> Vocabulary:
        """The fields' values, checked, and `byte_ids` found.

        Raises UsageError where they contradict each other or a byte of well-formed text has no token.
        """
        size = len(token_bytes)
        if len(names) != size:
            raise UsageError(f"the vocabulary has {size} tokens and {len(names)} names of them")
        if not ends or not all(0 <= token < size for token in (*ends, *controls, pad)):
            raise UsageError(
                f"ends, padding and control tokens must be among the {size} tokens, one end at least"
            )
        if not all(BYTES <= symbol < SYMBOLS for symbol in markers.values()):
            raise UsageError(f"markers are the symbols {BYTES} to {SYMBOLS - 1}")
        for token in (*ends, *controls):
            if isinstance(token_bytes[token], bytes) and token_bytes[token]:
                raise UsageError(f"the control token {token} must have no bytes")
        byte_ids = _single(token_bytes)
        missing = [byte for byte in _TEXT_BYTES if byte_ids[byte] < 0]
        if missing:
            raise UsageError(
                f"this vocabulary has no token for the byte 0x{missing[0]:02x} alone "
                f"({len(missing)} such bytes): constrained answers need one for each"
            )
        return cls(
            tuple(token_bytes), byte_ids, tuple(ends), pad, dict(markers), tuple(names), tuple(controls)
        )

    @cached_property
    def ids(self) -> Mapping[bytes, int]:
        """The token of each run of bytes; of several the last, as in `byte_ids`."""
        return {
            data: token for token, data in enumerate(self.token_bytes) if isinstance(data, bytes) and data
        }

    @cached_property
    def tree(self) -> tuple[Level, ...]:
        """The tokens as a tree of their symbols; made when it is first needed."""
        return tree_of(self.token_bytes)

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.token_bytes)


# The bytes that occur in well-formed UTF-8.
_TEXT_BYTES = (*range(0xC0), *range(0xC2, 0xF5))


def _single(token_bytes: Sequence[TokenSymbols]) -> NDArray[np.int64]:
    """[SYMBOLS]: of several the last: a letter's own token stands behind the bytes' tokens."""
    found = np.full(SYMBOLS, -1, np.int64)
    for token, symbols in enumerate(token_bytes):
        if len(symbols) == 1:
            found[symbols[0]] = token
    found.setflags(write=False)
    return found


__all__ = ["BYTES", "MARKERS", "SYMBOLS", "TokenSymbols", "Vocabulary"]
