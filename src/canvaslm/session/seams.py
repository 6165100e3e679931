"""Where given text and a hole meet: tokens of a vocabulary by how their bytes begin and end.

The tokens of a text are not those of its parts: "return " ends in a token for one space, but "return x" has
none. So the token at the edge of a given text belongs to the hole, if there are tokens that begin (or end)
with its bytes and go on, and the hole's first (or last) place takes these alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..constrain.holes import TokenBits
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Edges:
    """A given text in tokens without those that belong to the holes around it, and the bytes of these."""

    tokens: tuple[int, ...]
    behind: bytes = b""  # the start of the text, at the end of the hole before it
    before: bytes = b""  # the end of the text, at the start of the hole behind it


class Seams:
    """The tokens of one tokenizer that are text. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _forward(self) -> list[tuple[bytes, int]]:
        tokenizer = self._tokenizer
        tokens = (t for t in range(tokenizer.vocab_size) if not tokenizer.is_control(t))
        return sorted((data, t) for t in tokens if (data := tokenizer.token_bytes(t)))

    @cached_property
    def _backward(self) -> list[tuple[bytes, int]]:
        return sorted((data[::-1], token) for data, token in self._forward)

    @cached_property
    def text(self) -> TokenBits:
        """All tokens that are text."""
        return bits_of(token for _, token in self._forward)

    def starting(self, data: bytes) -> list[int]:
        """Tokens whose bytes begin with these."""
        return _with_prefix(self._forward, data)

    def ending(self, data: bytes) -> list[int]:
        """Tokens whose bytes end with these."""
        return _with_prefix(self._backward, data[::-1])

    def edges(self, text: str, *, hole_before: bool, hole_behind: bool) -> Edges:
        """A given text in tokens, those at holes backed off where another token could stand in their place.

        At least one token stays of a text behind a hole, for the hole's length to be found by.
        """
        tokens = self._encoded(text)
        data = [self._tokenizer.token_bytes(token) for token in tokens]
        if b"".join(data) != text.encode():  # a tokenizer that changes text: its tokens say nothing of bytes
            return Edges(tuple(tokens))
        behind = before = b""
        if hole_behind and len(tokens) > hole_before and len(self.starting(data[-1])) > 1:
            before = data[-1]
            tokens = tokens[:-1]
        if hole_before and len(tokens) > 1 and len(self.ending(data[0])) > 1:
            behind = data[0]
            tokens = tokens[1:]
        return Edges(tuple(tokens), behind, before)

    def _encoded(self, text: str) -> list[int]:
        """Without the space that some tokenizers put before every text."""
        tokens = self._tokenizer.encode(text)
        extra = self._tokenizer.decoding.strip_start
        if extra and tokens and not text.startswith(" ") and self._tokenizer.token_bytes(tokens[0]) == b" ":
            return tokens[1:]
        return tokens


def bits_of(tokens: Iterable[int]) -> TokenBits:
    """A set of tokens: bit t % 8 of byte t // 8 is that of token t."""
    made = bytearray()
    for token in sorted(tokens):
        if token // 8 >= len(made):
            made.extend(bytes(token // 8 + 1 - len(made)))
        made[token // 8] |= 1 << token % 8
    return bytes(made)


def _with_prefix(table: Sequence[tuple[bytes, int]], data: bytes) -> list[int]:
    found = []
    for index in range(bisect_left(table, (data, -1)), len(table)):
        if not table[index][0].startswith(data):
            break
        found.append(table[index][1])
    return found


__all__ = ["Edges", "Seams", "bits_of"]
