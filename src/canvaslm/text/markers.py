"""What a control token looks like, and the pieces that a rendered prompt is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable

# `<|turn>`, `<turn|>`, `<|"|>`, `<|im_start|>`; not operators such as `<|` or `<||>`.
MARKER = re.compile(r'<\|(?:\w[\w.-]*|")\|?>|<\w[\w.-]*\|>')


class Special(str):
    """A control token in rendered template output, by its text. Any other `str` is plain text.

    Only text that the template itself wrote becomes `Special`; see `canvaslm.text.chat`.
    """

    __slots__ = ()


def looks_like_marker(token: str) -> bool:
    """Whether a token's text has the form of a turn or tool marker (`<|...>` or `<...|>`)."""
    return token.startswith("<") and "|" in token and MARKER.fullmatch(token) is not None


def merge_text(pieces: Iterable[str]) -> list[str]:
    """Joins neighbouring plain strings, which a tokenizer must see as one; drops empty ones."""
    merged: list[str] = []
    run: list[str] = []
    for piece in pieces:
        if not isinstance(piece, Special):
            run.append(piece)
            continue
        if text := "".join(run):
            merged.append(text)
        run = []
        merged.append(piece)
    if text := "".join(run):
        merged.append(text)
    return merged


__all__ = ["MARKER", "Special", "looks_like_marker", "merge_text"]
