"""A small vocabulary for tests of constraints: every byte, some words, markers and ends."""

from __future__ import annotations

from collections.abc import Sequence

from canvaslm.constrain.vocabulary import TokenSymbols, Vocabulary

PAD, EOS, TURN_END = 0, 1, 2
MARKER_TEXTS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>')
WORDS = (
    "true",
    "false",
    "null",
    '{"',
    '":',
    ', "',
    "thought",
    "name",
    "the",
    " the",
    "12",
    "00",
    "é",
    "世界",
)


def vocabulary(words: Sequence[str] = WORDS) -> Vocabulary:
    """Padding, two ends, five markers, 256 bytes, then `words`."""
    markers = {text: 256 + index for index, text in enumerate(MARKER_TEXTS)}
    controls = ("<pad>", "<eos>", "<turn|>", *MARKER_TEXTS)
    symbols: list[TokenSymbols] = [b""] * 3
    symbols += [(symbol,) for symbol in markers.values()]
    symbols += [bytes((byte,)) for byte in range(256)]
    symbols += [word.encode() for word in words]
    names = [text.encode() for text in controls]
    names += [bytes(symbol) for symbol in symbols[len(controls) :]]
    return Vocabulary.of(symbols, range(len(controls)), names, (EOS, TURN_END), PAD, markers)


def written(tokens: Sequence[int], words: Vocabulary) -> bytes:
    """What tokens say; markers as they are written."""
    return b"".join(words.names[token] for token in tokens if token not in (*words.ends, words.pad))


__all__ = ["EOS", "MARKER_TEXTS", "PAD", "TURN_END", "WORDS", "vocabulary", "written"]
