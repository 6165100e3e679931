"""Ranges of code points as ranges of the bytes that UTF-8 writes them with."""

from __future__ import annotations

from collections.abc import Iterator

from .expression import Range

# The last code point of each length in bytes.
_LENGTHS = (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)


def byte_ranges(low: int, high: int) -> Iterator[tuple[Range, ...]]:
    """Runs of byte ranges that together match exactly the characters from `low` to `high`.

    No surrogates may be among them. A range is cut where the number of bytes changes, and then where a run of
    ranges would match more: both ends of all bytes but the first that differs must be the first and the last
    that continue a character.
    """
    for last in _LENGTHS:
        if low <= last:
            yield from _same_length(low, min(high, last))
            low = last + 1
        if low > high:
            return


def _same_length(low: int, high: int) -> Iterator[tuple[Range, ...]]:
    for bits in (6, 12, 18):  # what the last byte, the last two, the last three tell apart
        mask = (1 << bits) - 1
        if low > 0x7F and low & ~mask != high & ~mask:
            if low & mask:
                yield from _same_length(low, low | mask)
                yield from _same_length((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _same_length(low, (high & ~mask) - 1)
                yield from _same_length(high & ~mask, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))


__all__ = ["byte_ranges"]
