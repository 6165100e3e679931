"""Scores for people (tables) and for programs (a JSON document)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..files import write_text
from .comparison import Comparison
from .curves import Curve
from .score import Score

_UNKNOWN = "-"


def table(scores: Sequence[Score], title: str) -> Table:
    """One row per task: a group of columns per mode, side by side. Of more than two modes, and of the points
    of a sweep, a row for each."""
    modes = list(dict.fromkeys(score.mode for score in scores))
    drawn = Table(title=title, title_justify="left")
    swept = any(score.point.at for score in scores)
    side_by_side = len(modes) <= 2 and not swept
    for heading in ("task", "items") if side_by_side else ("task", "point" if swept else "mode", "items"):
        drawn.add_column(heading, justify="right" if heading == "items" else "left")
    counted = any(score.valid is not None for score in scores)
    columns = ["exact", "95 %", "steps/\ncanvas", "tokens/\npass", *["valid"] * counted]
    if not side_by_side:
        columns += ["passes/\nanswer", "tokens/s"]
    for prefix in [f"{mode}\n" for mode in modes] if side_by_side else [""]:
        for heading in columns:
            drawn.add_column(f"{prefix}{heading}", justify="right")
    for task in dict.fromkeys(score.task for score in scores):
        mine = [score for score in scores if score.task == task]
        if side_by_side:
            drawn.add_row(task, str(mine[0].items), *(cell for score in mine for cell in _cells(score)))
            continue
        for score in mine:
            speed = [_number(score.passes), _number(score.tokens_per_second)]
            drawn.add_row(task, score.mode, str(score.items), *_cells(score), *speed)
    return drawn


def area_table(curves: Sequence[Curve]) -> Table:
    """The area below each curve (`curves.py` says what that is)."""
    drawn = Table(title="Accuracy under parallelism: area below exact match over log2 tokens per pass")
    named = any(curve.name for curve in curves)
    for heading in ("task", *["curve"] * named):
        drawn.add_column(heading)
    for heading in ("area", "95 %", "from 1 to\ntokens/pass"):
        drawn.add_column(heading, justify="right")
    for curve in curves:
        size = _UNKNOWN if curve.area is None else f"{curve.area:.3f}"
        ends = _UNKNOWN if curve.interval is None else f"{curve.interval[0]:.3f}-{curve.interval[1]:.3f}"
        drawn.add_row(curve.task, *[curve.name] * named, size, ends, _number(curve.most))
    return drawn


def comparison_table(compared: Sequence[Comparison], title: str) -> Table:
    """A row for each point of each task; gains, passes and time are beside those of its first point. Where a
    point leaves places out, the places computed take the column of tokens a pass."""
    drawn = Table(title=title, title_justify="left")
    places = any({"keep_steps", "first_places"} & {*one.score.point.params} for one in compared)
    for heading in ("task", "point"):
        drawn.add_column(heading)
    for heading in (
        "items",
        "exact",
        "95 %",
        "gain",
        "95 %",
        "passes/\nanswer",
        "x",
        "places/\nanswer" if places else "tokens/\npass",
        "time x",
    ):
        drawn.add_column(heading, justify="right")
    for one in compared:
        score, first = one.score, one.score is one.first
        low, high = score.interval
        fell, rose = one.interval
        gain = ["", ""] if first else [f"{one.gain:+.3f}", f"{fell:+.3f} to {rose:+.3f}"]
        drawn.add_row(
            score.task if first else "", score.mode, str(score.items), f"{score.share:.3f}",
            f"{low:.3f}-{high:.3f}", *gain, _ratio(score.passes or None), _ratio(one.passes),
            _number(score.places if places else score.tokens_per_pass), _ratio(one.time),
            end_section=one is _last_of(compared, score.task),
        )  # fmt: skip
    return drawn


def _last_of(compared: Sequence[Comparison], task: str) -> Comparison:
    return [one for one in compared if one.score.task == task][-1]


def _ratio(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}"


def _cells(score: Score) -> list[str]:
    low, high = score.interval
    return [
        f"{score.share:.3f}",
        f"{low:.3f}-{high:.3f}",
        _number(score.steps_per_canvas),
        _number(score.tokens_per_pass),
        *([] if score.valid is None else [f"{score.valid / max(1, score.count):.3f}"]),
    ]


def _number(value: float) -> str:
    """What is 0 was not told: a server need not say how many steps it took."""
    return f"{value:.1f}" if value else _UNKNOWN


def markdown(scores: Sequence[Score]) -> str:
    """The table of a model card."""
    modes = list(dict.fromkeys(score.mode for score in scores))
    columns = ["exact match", "95 %", "steps/canvas", "tokens/pass"]
    if any(score.valid is not None for score in scores):
        columns.append("valid")
    heads = [f"{mode}: {what}" for mode in modes for what in columns]
    lines = [f"| task | items | {' | '.join(heads)} |", "|---|---" + "|---" * len(heads) + "|"]
    for task in dict.fromkeys(score.task for score in scores):
        mine = [score for score in scores if score.task == task]
        cells = [cell for score in mine for cell in _cells(score)]
        lines.append(f"| {task} | {mine[0].items} | {' | '.join(cells)} |")
    return "\n".join(lines)


def document(
    name: str,
    scores: Sequence[Score],
    settings: Mapping[str, Any],
    curves: Sequence[Curve] = (),
    compared: Sequence[Comparison] = (),
    *,
    complete: bool = True,
) -> dict[str, Any]:
    """The JSON document: what was run, with which settings, a score per task and point, the curves of a
    sweep, and the comparisons of a table. Not `complete`: it was stopped, and these are the
    points that were done."""
    return {
        "eval": name,
        "complete": complete,
        "settings": dict(settings),
        "scores": [score.to_dict() for score in scores],
        "curves": [curve.to_dict() for curve in curves],
        "comparisons": [one.to_dict() for one in compared],
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON document. Raises as `files.write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


__all__ = ["area_table", "comparison_table", "document", "markdown", "table", "write"]
