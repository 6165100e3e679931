"""Points compared with the first one of their task, answer by answer, since all answer the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .score import ALL, Score, pooled

RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """A score beside that of its task's first point."""

    score: Score
    first: Score

    @property
    def gain(self) -> float:
        """Share of right answers, less the first point's."""
        return self.score.share - self.first.share

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the gain, by a bootstrap over items (of each task its own): what an item gains under all
        seeds comes along together. The same for ever for the same scores."""
        keys = sorted(self.score.tallies)
        gains = np.array([self.score.tallies[k].right - self.first.tallies[k].right for k in keys])
        rng, tasks = np.random.default_rng(0), np.array([task for task, _ in keys])
        sums = np.zeros(RESAMPLES)
        for task in dict.fromkeys(tasks.tolist()):
            mine = gains[tasks == task]
            sums += rng.choice(mine, (RESAMPLES, len(mine))).sum(axis=1)
        low, high = np.percentile(sums / (len(keys) * self.score.seeds), [2.5, 97.5])
        return float(low), float(high)

    @property
    def passes(self) -> float | None:
        """Passes an answer over the first point's; None where they are not known."""
        return self.score.passes / self.first.passes if self.first.passes and self.score.passes else None

    @property
    def time(self) -> float | None:
        """Wall time over the first point's, of the same run."""
        return self.score.seconds / self.first.seconds if self.first.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document."""
        return {
            "task": self.score.task,
            **self.score.figures(),
            "gain": round(self.gain, 4),
            "gain_interval_95": [round(end, 4) for end in self.interval],
            "passes_ratio": None if self.passes is None else round(self.passes, 3),
            "time_ratio": None if self.time is None else round(self.time, 3),
        }


def comparisons(scores: Sequence[Score]) -> list[Comparison]:
    """Of every task, then of all tasks pooled, at the points that each of them has done."""
    by_task = {task: [s for s in scores if s.task == task] for task in dict.fromkeys(s.task for s in scores)}
    common = [
        mode for mode in dict.fromkeys(s.mode for s in scores)
        if all(any(s.mode == mode for s in mine) for mine in by_task.values())
    ]  # fmt: skip
    if len(by_task) > 1:
        by_task[ALL] = [pooled([s for s in scores if s.mode == mode]) for mode in common]
    return [Comparison(score, mine[0]) for mine in by_task.values() for score in mine]


__all__ = ["RESAMPLES", "Comparison", "comparisons"]
