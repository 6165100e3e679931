"""How right answers hold up when more tokens are written in a pass: curves of a sweep, and the area below.

The area ("accuracy under parallelism"): exact match as a function of log2 of tokens per pass, integrated
from one token a pass to the most that any point of the task reached, over that length. 1 is: everything right
at the greatest parallelism; a model whose answers are right at one token a pass alone has nearly 0. Of the
points only those count that no other one beats in both; between them the curve is straight, left of the
slowest it is level, right of the fastest it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .score import ALL, Score, pooled

RESAMPLES = 1000
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The points of one task that differ in the first sweep alone. `area` and its 95 % interval are None
    where passes are not known, or no point has more than one token a pass."""

    task: str
    name: str
    scores: tuple[Score, ...]
    most: float  # tokens per pass, of any point of the task: where the area ends
    area: float | None
    interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document."""
        return {
            "task": self.task,
            "curve": self.name,
            "points": [score.figures() for score in self.scores],
            "most_tokens_per_pass": round(self.most, 3),
            "area": None if self.area is None else round(self.area, 4),
            "interval_95": None if self.interval is None else [round(end, 4) for end in self.interval],
        }


def area(tokens_per_pass: Numbers, exact: Numbers, most: float) -> float:
    """The normalised area below one curve. All in order of the points; `most` > 1."""
    known = tokens_per_pass > 0
    if not known.any():
        return 0.0
    x, y = _frontier(np.log2(tokens_per_pass[known]), exact[known])
    top = float(np.log2(most))
    end = min(top, float(x[-1]))
    if end <= 0:
        return 0.0
    knots = np.unique(np.clip(np.concatenate([x, [0.0, end]]), 0.0, end))
    heights = np.interp(knots, x, y)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(knots)).sum() / top)


def _frontier(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """The points that no other is both at least as fast and more often right than: x up, y down."""
    order = np.lexsort((-y, -x))
    x, y = x[order], y[order]
    best = np.concatenate([[-np.inf], np.maximum.accumulate(y)[:-1]])
    kept = y > best
    return x[kept][::-1], y[kept][::-1]


def curves(scores: Sequence[Score]) -> list[Curve]:
    """Those of every task with all its points done, then those of all such tasks pooled. Scores without a
    point of a sweep make none."""
    swept = [score for score in scores if score.point.at]
    by_task = {task: [s for s in swept if s.task == task] for task in dict.fromkeys(s.task for s in swept)}
    full = max((len(mine) for mine in by_task.values()), default=0)
    whole = {task: mine for task, mine in by_task.items() if len(mine) == full}
    if len(whole) > 1:
        whole[ALL] = [pooled(column) for column in zip(*whole.values(), strict=True)]
    return [curve for task, mine in whole.items() for curve in _curves_of(task, mine)]


def _curves_of(task: str, scores: Sequence[Score]) -> list[Curve]:
    most = max(score.tokens_per_pass for score in scores)
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.point.curve, []).append(score)
    found = []
    for name, mine in groups.items():
        if len(mine) < 2:
            continue
        size, interval = None, None
        if most > 1 and all(score.passes for score in mine):
            speeds = np.array([score.tokens_per_pass for score in mine])
            size = area(speeds, np.array([score.share for score in mine]), most)
            interval = _interval(mine, most)
        found.append(Curve(task, name, tuple(mine), most, size, interval))
    return found


def _interval(scores: Sequence[Score], most: float) -> tuple[float, float]:
    """95 %, by a bootstrap over items (of each task its own): an item's answers under all seeds and at all
    points come along together. The same for ever for the same scores."""
    keys = sorted(scores[0].tallies)
    table = np.array(
        [[astuple(score.tallies[key]) for key in keys] for score in scores], dtype=np.float64
    )  # [points, items, (right, tokens, passes)]
    rng = np.random.default_rng(0)
    tasks = np.array([key[0] for key in keys])
    strata = [np.flatnonzero(tasks == task) for task in dict.fromkeys(tasks.tolist())]
    areas = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(places, len(places)) for places in strata])
        right, tokens, passes = np.moveaxis(table[:, drawn].sum(axis=1), -1, 0)
        areas.append(area(tokens / np.maximum(passes, 1), right / (len(drawn) * scores[0].seeds), most))
    low, high = np.percentile(areas, [2.5, 97.5])
    return float(low), float(high)


__all__ = ["RESAMPLES", "Curve", "area", "curves"]
