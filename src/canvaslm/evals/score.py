"""What an eval measures: right answers with their uncertainty, passes, tokens, seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import Answer
from .points import Point

Z95 = 1.96
ALL = "all tasks"
_NO_POINT = Point("")


def wilson(correct: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share (Wilson 1927): sound near 0 and 1, where the demo's scores are."""
    if not count:
        return 0.0, 1.0
    share, z2 = correct / count, Z95**2
    middle = share + z2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + z2 / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


@dataclass
class ItemTally:
    """The answers to one item under all seeds."""

    right: int = 0
    tokens: int = 0
    passes: int = 0


@dataclass
class Score:
    """ItemTally of one task at one point. `count` answers, `seeds` to each item. `misses` keeps a few wrong
    answers, as (prompt, wanted, got); `seconds` is wall time, with as many answers in flight as there were.
    """

    task: str
    mode: str
    count: int = 0
    correct: int = 0
    canvases: int = 0
    steps: int = 0
    tokens: int = 0
    misses: list[tuple[str, str, str]] = field(default_factory=list)
    valid: int | None = None  # answers of the form that was asked for; None: not counted
    point: Point = _NO_POINT
    seeds: int = 1
    seconds: float = 0.0
    reads: int = 0  # passes of the causal reader alone
    computed: int = 0  # places, in all steps; 0 where that was not told
    tallies: dict[tuple[str, int], ItemTally] = field(default_factory=dict)  # by (task, place of the item)

    def add(self, place: int, answer: Answer, right: bool) -> None:
        """Counts in one answer to the item at `place`."""
        steps = sum(answer.steps)
        self.count += 1
        self.correct += right
        self.canvases += len(answer.steps)
        self.steps += steps
        self.reads += answer.reads
        self.computed += answer.computed
        self.tokens += answer.tokens
        tally = self.tallies.setdefault((self.task, place), ItemTally())
        tally.right += right
        tally.tokens += answer.tokens
        tally.passes += steps + answer.reads

    @property
    def items(self) -> int:
        """Different questions."""
        return self.count // self.seeds

    @property
    def share(self) -> float:
        """Right answers per answer; 0 when nothing was asked."""
        return self.correct / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson's with as many trials as there are items: answers to one item under several seeds may
        all be right or wrong together, so more seeds steady the share but make it no surer."""
        return wilson(self.share * self.items, self.items)

    @property
    def steps_per_canvas(self) -> float:
        return self.steps / self.canvases if self.canvases else 0.0

    @property
    def passes(self) -> float:
        """Of an answer, all its canvases together: denoise steps, and what the causal reader took."""
        return (self.steps + self.reads) / self.count if self.count else 0.0

    @property
    def places(self) -> float:
        """Of an answer, computed in all its steps together."""
        return self.computed / self.count if self.count else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Committed tokens (up to and with the end of turn) per pass of a row."""
        passes = self.steps + self.reads
        return self.tokens / passes if passes else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def figures(self) -> dict[str, Any]:
        """What was measured at the point, by the point's label."""
        low, high = self.interval
        return {
            "mode": self.mode,
            "items": self.items,
            "seeds": self.seeds,
            "correct": self.correct,
            **({} if self.valid is None else {"valid": self.valid}),
            "exact_match": round(self.share, 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "steps_per_canvas": round(self.steps_per_canvas, 3),
            "passes_per_answer": round(self.passes, 3),
            "places_per_answer": round(self.places, 2),
            "tokens_per_pass": round(self.tokens_per_pass, 3),
            "tokens_per_second": round(self.tokens_per_second, 2),
        }

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document. `right` has, for each item, how many of its answers are."""
        return {
            "task": self.task,
            **self.figures(),
            "params": dict(self.point.params),
            "canvases": self.canvases,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "right": [self.tallies[key].right for key in sorted(self.tallies)],
            "misses": [dict(zip(("prompt", "wanted", "got"), miss, strict=True)) for miss in self.misses],
        }


def pooled(scores: Sequence[Score]) -> Score:
    """The scores of several tasks at one point as one: every item weighs the same."""
    first = scores[0]
    whole = Score(ALL, first.mode, point=first.point, seeds=first.seeds)
    whole.valid = None if first.valid is None else sum(score.valid or 0 for score in scores)
    for score in scores:
        whole.count += score.count
        whole.correct += score.correct
        whole.canvases += score.canvases
        whole.steps += score.steps
        whole.reads += score.reads
        whole.computed += score.computed
        whole.tokens += score.tokens
        whole.seconds += score.seconds
        whole.tallies |= score.tallies
    return whole


__all__ = ["ALL", "ItemTally", "Score", "pooled", "wilson"]
