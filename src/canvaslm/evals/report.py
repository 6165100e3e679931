"""Scores for people (a table) and for programs (a JSON document)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..files import write_text
from .score import Score, wilson


def table(scores: Sequence[Score], title: str) -> Table:
    """One row per task: a group of columns per mode, side by side."""
    modes = list(dict.fromkeys(score.mode for score in scores))
    rows: dict[str, dict[str, Score]] = {}
    for score in scores:
        rows.setdefault(score.task, {})[score.mode] = score
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("task")
    drawn.add_column("items", justify="right")
    for mode in modes:
        for heading in (f"{mode}\nexact", "95 %", "steps/\ncanvas", "tokens/\nstep"):
            drawn.add_column(heading, justify="right")
    for task, by_mode in rows.items():
        cells = [cell for mode in modes for cell in _cells(by_mode[mode])]
        drawn.add_row(task, str(next(iter(by_mode.values())).count), *cells)
    return drawn


def _cells(score: Score) -> list[str]:
    low, high = wilson(score.correct, score.count)
    return [
        f"{score.share:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{score.steps_per_canvas:.1f}",
        f"{score.tokens_per_step:.1f}",
    ]


def markdown(scores: Sequence[Score]) -> str:
    """The table of a model card."""
    modes = list(dict.fromkeys(score.mode for score in scores))
    heads = [
        f"{mode}: {what}" for mode in modes for what in ("exact match", "95 %", "steps/canvas", "tokens/step")
    ]
    lines = [f"| task | items | {' | '.join(heads)} |", "|---|---" + "|---" * len(heads) + "|"]
    for task in dict.fromkeys(score.task for score in scores):
        mine = [score for score in scores if score.task == task]
        cells = [cell for score in mine for cell in _cells(score)]
        lines.append(f"| {task} | {mine[0].count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def document(name: str, scores: Sequence[Score], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document: what was run, with which settings, and a score per task and mode."""
    return {"eval": name, "settings": dict(settings), "scores": [score.to_dict() for score in scores]}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON document. Raises as `files.write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


__all__ = ["document", "markdown", "table", "write"]
