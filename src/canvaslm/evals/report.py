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
    """One row per task: a group of columns per mode, side by side. Of more than two modes, a row for each."""
    modes = list(dict.fromkeys(score.mode for score in scores))
    drawn = Table(title=title, title_justify="left")
    side_by_side = len(modes) <= 2
    for heading in ("task", "items") if side_by_side else ("task", "mode", "items"):
        drawn.add_column(heading, justify="right" if heading == "items" else "left")
    counted = any(score.valid is not None for score in scores)
    for prefix in [f"{mode}\n" for mode in modes] if side_by_side else [""]:
        for heading in (f"{prefix}exact", "95 %", "steps/\ncanvas", "tokens/\nstep", *["valid"] * counted):
            drawn.add_column(heading, justify="right")
    for task in dict.fromkeys(score.task for score in scores):
        mine = [score for score in scores if score.task == task]
        if side_by_side:
            drawn.add_row(task, str(mine[0].count), *(cell for score in mine for cell in _cells(score)))
            continue
        for score in mine:
            drawn.add_row(task, score.mode, str(score.count), *_cells(score))
    return drawn


def _cells(score: Score) -> list[str]:
    low, high = wilson(score.correct, score.count)
    return [
        f"{score.share:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{score.steps_per_canvas:.1f}",
        f"{score.tokens_per_step:.1f}",
        *([] if score.valid is None else [f"{score.valid / max(1, score.count):.3f}"]),
    ]


def markdown(scores: Sequence[Score]) -> str:
    """The table of a model card."""
    modes = list(dict.fromkeys(score.mode for score in scores))
    columns = ["exact match", "95 %", "steps/canvas", "tokens/step"]
    if any(score.valid is not None for score in scores):
        columns.append("valid")
    heads = [f"{mode}: {what}" for mode in modes for what in columns]
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
