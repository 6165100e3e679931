"""Where given text and a hole meet: tokens of a vocabulary by how their bytes begin and end.

The tokens of a text are not those of its parts: "return " ends in a token for one space, but "return x" has
none. So the last (or first) tokens of a given text may belong to the hole: its first (or last) place then
takes a token that has their bytes and goes on, and no other.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..constrain.holes import Seam, TokenBits
from ..text.tokenizer import Tokenizer

DEEPEST = 3  # tokens of a given text that may belong to a hole


@dataclass(frozen=True)
class GivenText:
    """A given text in tokens, and the bytes of each; none where the tokenizer changes text, so that its
    tokens say nothing of bytes."""

    tokens: tuple[int, ...]
    data: tuple[bytes, ...] = ()

    def start(self, count: int) -> bytes:
        """The bytes of the first tokens."""
        return b"".join(self.data[:count])

    def end(self, count: int) -> bytes:
        """The bytes of the last tokens."""
        return b"".join(self.data[len(self.data) - count :])


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

    def read(self, text: str) -> GivenText:
        """A given text in tokens."""
        tokens = self._encoded(text)
        data = tuple(self._tokenizer.token_bytes(token) for token in tokens)
        return GivenText(tuple(tokens), data if b"".join(data) == text.encode() else ())

    def before(self, text: GivenText) -> tuple[Seam, ...]:
        """The seams that a text may have with a hole behind it."""
        counts = range(1, min(DEEPEST, len(text.data)) + 1)
        return _seams((n, self._going_on(self._forward, text.end(n))) for n in counts)

    def behind(self, text: GivenText) -> tuple[Seam, ...]:
        """Those with a hole before it. One token at least stays, by which the hole's length is found."""
        counts = range(1, min(DEEPEST, len(text.data) - 1) + 1)
        return _seams((n, self._going_on(self._backward, text.start(n)[::-1])) for n in counts)

    def joined(
        self, before: GivenText, behind: GivenText, hole: tuple[tuple[Seam, ...], tuple[Seam, ...]]
    ) -> dict[tuple[int, int], TokenBits]:
        """Tokens that have the bytes of both edges of a hole, for each two seams that there are such for."""
        made = {}
        for one, other in itertools.product(*hole):
            start, end = before.end(one.count), behind.start(other.count)
            tokens = [
                token
                for data, token in _with_prefix(self._forward, start)
                if data.endswith(end) and len(data) >= len(start) + len(end)
            ]
            if tokens:
                made[one.count, other.count] = bits_of(tokens)
        return made

    def _going_on(self, table: Sequence[tuple[bytes, int]], data: bytes) -> list[int]:
        """Tokens that begin, in the table's direction, with these bytes and have more."""
        return [token for found, token in _with_prefix(table, data) if len(found) > len(data)]

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


def _seams(sets: Iterable[tuple[int, list[int]]]) -> tuple[Seam, ...]:
    return tuple(Seam(count, bits_of(tokens)) for count, tokens in sets if tokens)


def _with_prefix(table: Sequence[tuple[bytes, int]], data: bytes) -> list[tuple[bytes, int]]:
    found = []
    for index in range(bisect_left(table, (data, -1)), len(table)):
        if not table[index][0].startswith(data):
            break
        found.append(table[index])
    return found


__all__ = ["DEEPEST", "GivenText", "Seams", "bits_of"]
