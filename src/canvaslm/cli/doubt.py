"""How doubt looks: underlined and in colour, or, where there is none, in brackets in the text itself.

Without colour (NO_COLOR, `--color never`, standard output no terminal) a part of level 2 is `[??like this]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..text.doubt import LEVELS, doubt_level
from ..types import Reply, TokenLogprob
from .canvas_view import Style, StyledText
from .terminal import Abilities, paint, paint_lines


def doubt_parts(text: str, level: int, able: Abilities) -> list[tuple[str, Style]]:
    """A part of an answer as it is shown; white space around it is not marked."""
    core = text.strip()
    if not level or not core:
        return [(text, Style())]
    start = text.index(core)
    marked = (core, Style(underline=True, doubt=level)) if able.colors else (_bracketed(core, level), Style())
    around = ((text[:start], Style()), marked, (text[start + len(core) :], Style()))
    return [part for part in around if part[0]]


def painted(text: str, level: int, able: Abilities) -> str:
    """The same for a stream that is written on and on."""
    return "".join(paint_lines(part, style, able) for part, style in doubt_parts(text, level, able))


def _bracketed(text: str, level: int) -> str:
    return f"[{'?' * level}{text}]"


def legend(reply: Reply, able: Abilities) -> str:
    """How many tokens of the answer are of each level, and what the levels mean."""
    counts = [0] * (len(LEVELS) + 1)
    for token in reply.logprobs:
        counts[doubt_level(token.causal)] += 1
    total = len(reply.logprobs)
    if not sum(counts[1:]):
        return f"doubt: no token of {total} is less likely than {_percent(LEVELS[0])}"
    said = [
        f"{count} {_sample(level, able)} below {_percent(LEVELS[level - 1])}"
        for level, count in enumerate(counts)
        if level and count
    ]
    return f"doubt: of {total} tokens {', '.join(said)} likely, as the causal reader says"


def _sample(level: int, able: Abilities) -> str:
    if not able.colors:
        return _bracketed("", level)
    name = ("yellow", "orange", "red") if able.colors >= 256 else ("yellow", "magenta", "red")
    return paint(StyledText(name[level - 1], Style(underline=True, doubt=level)), able)


def _percent(limit: float) -> str:
    return f"{100 * math.exp(limit):.2g} %"


def as_entries(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """For JSON: of each token its log-probability on the canvas, what the causal reader says, its level.
    null for minus infinity."""
    return [
        {
            "token": token.token,
            "logprob": _finite(token.logprob),
            "causal_logprob": None if token.causal is None else _finite(token.causal),
            "causal_rank": token.rank,
            "doubt": doubt_level(token.causal),
        }
        for token in tokens
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


__all__ = ["as_entries", "doubt_parts", "legend", "painted"]
