"""Whether an answer has begun to repeat itself, exactly, over whole canvases."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Note

# Two canvases, and no fewer tokens than this: a short canvas's worth of dashes in a table repeats rightly.
LEAST = 128


def period(tokens: Sequence[int]) -> int:
    """The smallest p > 0 with tokens[i] == tokens[i + p] for all i; their number if there is none.

    By the borders of Knuth, Morris and Pratt, in one pass.
    """
    borders = [0] * len(tokens)
    for i in range(1, len(tokens)):
        border = borders[i - 1]
        while border and tokens[i] != tokens[border]:
            border = borders[border - 1]
        borders[i] = border + (tokens[i] == tokens[border])
    return len(tokens) - borders[-1] if tokens else 0


def repeated(output: Sequence[int], places: int) -> Note | None:
    """A note if the last two canvases' worth of tokens is one text over and over, that is at most half of
    them long. places: of a canvas."""
    span = max(2 * places, LEAST)
    if len(output) < span:
        return None
    length = period(output[-span:])
    if 2 * length > span:
        return None
    end = len(output) - span
    while end and output[end - 1] == output[end - 1 + length]:
        end -= 1
    return Note("repetition", f"the last {len(output) - end} tokens repeat the same {length}")


__all__ = ["LEAST", "period", "repeated"]
