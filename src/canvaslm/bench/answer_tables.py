"""Seconds an answer by preset, and what passes cost, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_SAID = (
    "A model of the time: a pass's cost measured here, times the passes that answers which fill as much of a "
    "canvas took where habits were counted. (x): the reference's seconds over a preset's."
)


def answer_tables(results: Mapping[str, Any], name: str) -> list[RenderableType]:
    """name: the model's."""
    return [_answers(results["answers"], name), _costs(results["costs"]), Text(_SAID)]


def _answers(found: list[Mapping[str, Any]], name: str) -> Table:
    lengths = list(dict.fromkeys(one["tokens"] for one in found))
    drawn = Table(title=f"{name}: seconds an answer", title_justify="left")
    drawn.add_column("preset")
    for tokens in lengths:
        drawn.add_column(f"{tokens} token{'' if tokens == 1 else 's'}", justify="right")
    cells = {(one["preset"], one["tokens"]): _cell(one) for one in found}
    for preset in dict.fromkeys(one["preset"] for one in found):
        drawn.add_row(preset, *(cells[preset, tokens] for tokens in lengths))
    return drawn


def _cell(one: Mapping[str, Any]) -> str:
    if one["seconds"] is None:
        return "-"
    return f"{one['seconds']:.3g}" + (f" ({one['ratio']:.2f}x)" if one["ratio"] else "")


def _costs(costs: Mapping[str, Any]) -> Table:
    drawn = Table(
        title=f"a pass behind {costs['context']} tokens, canvas of {costs['canvas']} places",
        title_justify="left",
    )
    drawn.add_column("pass")
    drawn.add_column("ms", justify="right")
    for step in reversed(costs["steps"]):
        drawn.add_row(f"denoise step, {step['places']} places computed", f"{1000 * step['seconds']:.4g}")
    named = {"token": "a causal token", "commit": "commit of a canvas", "read": "causal reading of a canvas"}
    for key, words in named.items():
        if costs[key] is not None:
            drawn.add_row(words, f"{1000 * costs[key]:.4g}")
    return drawn


__all__ = ["answer_tables"]
