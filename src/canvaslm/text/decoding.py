"""From token texts back to bytes and, as a stream, to strings.

The `tokenizers` library decodes whole lists only. A stream of canvases needs each token's bytes, so that half
a character can wait for its other half; the decoders that byte-level and byte-fallback vocabularies use are
few, and each is a rule about one token.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_table() -> dict[str, int]:
    """The printable stand-ins of GPT-2's byte-level BPE: character -> byte.

    Printable latin-1 bytes stand for themselves, the others take the code points from 256 on.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(own)]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_LEVEL = _byte_level_table()


@dataclass(frozen=True)
class Decoding:
    """How one token's text becomes bytes.

    `replace`: (old, new) pairs applied to the text; `byte_fallback`: `<0xNN>` is one byte; `byte_level`:
    every character stands for one byte; `strip_start`: spaces removed from the very beginning of a text.
    """

    replace: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    byte_level: bool = False
    strip_start: int = 0

    def to_bytes(self, token: str) -> bytes:
        """The bytes of one token."""
        if self.byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if self.byte_level and all(c in _BYTE_LEVEL for c in token):
            return bytes(_BYTE_LEVEL[c] for c in token)
        for old, new in self.replace:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")


def decoding_from_json(decoder: Mapping[str, Any] | None) -> Decoding:
    """Reads the `decoder` entry of a tokenizer.json. Raises ValueError on a kind that is not known here."""
    if decoder is None:
        raise ValueError("no decoder")
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    replace: list[tuple[str, str]] = []
    byte_fallback = byte_level = False
    strip_start = 0
    for step in steps:
        kind = step.get("type")
        if kind == "Replace" and isinstance(step["pattern"], dict) and "String" in step["pattern"]:
            replace.append((str(step["pattern"]["String"]), str(step["content"])))
        elif kind == "Metaspace":
            replace.append((str(step.get("replacement", "▁")), " "))
            strip_start = 0 if step.get("prepend_scheme") == "never" else 1
        elif kind == "Strip" and step.get("content") == " " and not step.get("stop"):
            strip_start = int(step.get("start", 0))
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind == "ByteLevel":
            byte_level = True
        elif kind != "Fuse":
            raise ValueError(f"decoder {kind!r}")
    return Decoding(tuple(replace), byte_fallback, byte_level, strip_start)


def strip_spaces(text: str, limit: int) -> str:
    """Removes at most `limit` spaces from the start."""
    kept = text.lstrip(" ")
    return text[min(limit, len(text) - len(kept)) :]


class BytesOfTokens(Protocol):
    """What a `StreamDecoder` needs of a tokenizer."""

    @property
    def decoding(self) -> Decoding: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_control(self, token_id: int) -> bool: ...


class StreamDecoder:
    """Decodes ids as they come; an incomplete UTF-8 character waits for its other bytes.

    The pieces joined equal `Tokenizer.decode` of all ids, however they were cut.
    """

    def __init__(self, tokenizer: BytesOfTokens, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.decoding.strip_start

    def feed(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete."""
        tokenizer = self._tokenizer
        skip = self._skip_special
        data = b"".join(tokenizer.token_bytes(i) for i in ids if not (skip and tokenizer.is_control(i)))
        return self._cut_start(self._utf8.decode(data))

    def close(self) -> str:
        """What was held back: an incomplete character becomes U+FFFD. The decoder can be used again."""
        text = self._cut_start(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        return text

    def copy(self) -> StreamDecoder:
        """A decoder that continues from here on its own."""
        twin = StreamDecoder(self._tokenizer, skip_special=self._skip_special)
        twin._utf8.setstate(self._utf8.getstate())
        twin._strip = self._strip
        return twin

    def _cut_start(self, text: str) -> str:
        if not self._strip or not text:
            return text
        kept = strip_spaces(text, self._strip)
        self._strip = 0 if kept else self._strip - len(text)
        return kept


__all__ = ["BYTE_TOKEN", "BytesOfTokens", "Decoding", "StreamDecoder", "decoding_from_json", "strip_spaces"]
