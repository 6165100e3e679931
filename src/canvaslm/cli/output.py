"""What a command prints: results on standard output, all else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol, TextIO

from ..text.doubt import DoubtText
from ..types import (
    CanvasReport,
    Draft,
    Event,
    Failed,
    Filled,
    Finished,
    Reply,
    ToolCall,
)
from .canvas_view import Style
from .doubt import as_entries, painted
from .glyphs import visible
from .terminal import Abilities, abilities, paint_lines


class Presenter(Protocol):
    """Something that events are shown to, between entering and leaving it."""

    def feed(self, event: Event) -> None: ...


def log(text: str, *, faint: bool = False) -> None:
    """A line on standard error; control characters shown, not sent. `faint` on a terminal: less important."""
    able = abilities(sys.stderr, os.environ)
    print(paint_lines(visible(text), Style(dim=faint and able.live), able), file=sys.stderr, flush=True)


class PlainAnswer:
    """Writes settled text as it comes, without thoughts, and sees that it ends with one newline.

    `harmless`: the stream is a terminal, so control characters are shown instead of sent. `doubt`: doubtful
    parts are marked as `able` to.
    """

    def __init__(
        self, stream: TextIO, *, harmless: bool, doubt: bool = False, able: Abilities = Abilities()
    ) -> None:
        self._stream, self._harmless, self._able = stream, harmless, able
        self._doubt = DoubtText() if doubt else None
        self._last = ""

    def feed(self, event: Event) -> None:
        """Writes what the event settles."""
        if isinstance(event, Draft | Failed):
            return
        parts = [(event.text, 0)] if self._doubt is None else self._doubt.feed(event)
        for text, level in parts:
            self._write(text, level)
        for call in event.tool_calls:
            self._end_line()
            self._write(call_line(call) + "\n")
        if isinstance(event, Finished):
            self._end_line()

    def _end_line(self) -> None:
        if self._last and self._last != "\n":
            self._write("\n")

    def _write(self, text: str, level: int = 0) -> None:
        if text:
            shown = visible(text, tabs=False) if self._harmless else text
            self._stream.write(painted(shown, level, self._able) if level else shown)
            self._stream.flush()
            self._last = text[-1]


def call_line(call: ToolCall) -> str:
    """A tool call as one line of JSON."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def figures(reply: Reply | Filled) -> str:
    """One line of honest figures: committed tokens over wall time, never canvas places times steps."""
    steps = sum(canvas.steps for canvas in reply.canvases)
    wall, count = reply.timings.total, tokens_in(reply)
    parts = [f"{count} in {wall:.2f} s: {_rate(reply):.1f} tokens/s" if wall > 0 else count]
    if steps:
        parts.append(f"{reply.timings.denoise / steps * 1000:.1f} ms/step")
        parts.append(f"steps per canvas {canvas_steps(reply.canvases)}")
    whole, computed = sum(c.steps * c.places for c in reply.canvases), sum(c.computed for c in reply.canvases)
    if computed < whole:
        parts.append(f"{computed / whole:.0%} of their places computed")
    if reads := sum(canvas.reads for canvas in reply.canvases):
        parts.append(f"{reads} causal pass{'' if reads == 1 else 'es'}")
    return " · ".join([*parts, f"seed {reply.seed}"])


def tokens_in(reply: Reply | Filled) -> str:
    """As `1 token`, `20 tokens`."""
    count = reply.usage.completion_tokens
    return f"{count} token{'' if count == 1 else 's'}"


def canvas_steps(canvases: tuple[CanvasReport, ...]) -> str:
    """As `12+48`; with their mean where there are many."""
    if len(canvases) <= 8:
        return "+".join(str(canvas.steps) for canvas in canvases)
    mean = sum(canvas.steps for canvas in canvases) / len(canvases)
    return f"{mean:.1f} (mean of {len(canvases)})"


def as_json(reply: Reply, model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The reply as a JSON object; times in seconds, `tokens` the committed ids. With log-probabilities, they
    are `logprobs`."""
    probable = {"logprobs": as_entries(reply.logprobs)} if reply.logprobs else {}
    return {
        "model": model,
        "text": reply.text,
        "thinking": reply.thinking,
        "tool_calls": [asdict(call) for call in reply.tool_calls],
        "finish_reason": reply.finish_reason,
        "tokens": list(reply.tokens),
        "steps": [canvas.steps for canvas in reply.canvases],
        "reads": [canvas.reads for canvas in reply.canvases],
        "computed": [canvas.computed for canvas in reply.canvases],
        "stop_reasons": [canvas.stop for canvas in reply.canvases],
        "mean_entropy": [canvas.mean_entropy for canvas in reply.canvases],
        **probable,
        "notes": [asdict(note) for note in reply.notes],
        "seed": reply.seed,
        "params": dict(params),
        "timings": {**asdict(reply.timings), "tokens_per_second": _rate(reply)},
        "usage": asdict(reply.usage),
    }


def filled_json(filled: Filled, model: str) -> dict[str, Any]:
    """A filled text as a JSON object; times in seconds."""
    return {
        "model": model,
        "text": filled.text,
        "holes": list(filled.holes),
        "finish_reason": filled.finish_reason,
        "steps": [canvas.steps for canvas in filled.canvases],
        "notes": [asdict(note) for note in filled.notes],
        "seed": filled.seed,
        "timings": {**asdict(filled.timings), "tokens_per_second": _rate(filled)},
        "usage": asdict(filled.usage),
    }


def _rate(reply: Reply | Filled) -> float:
    return reply.usage.completion_tokens / reply.timings.total if reply.timings.total > 0 else 0.0


__all__ = [
    "PlainAnswer",
    "Presenter",
    "as_json",
    "call_line",
    "canvas_steps",
    "figures",
    "filled_json",
    "log",
    "tokens_in",
]
