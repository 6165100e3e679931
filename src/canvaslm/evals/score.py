"""What an eval measures: right answers with their uncertainty, steps per canvas, tokens per step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .answers import Answer

Z95 = 1.96


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share (Wilson 1927): sound near 0 and 1, where the demo's scores are."""
    if not count:
        return 0.0, 1.0
    share, z2 = correct / count, Z95**2
    middle = share + z2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + z2 / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


@dataclass
class Score:
    """Tally of one task in one mode. `misses` keeps a few wrong answers, as (prompt, wanted, got)."""

    task: str
    mode: str
    count: int = 0
    correct: int = 0
    canvases: int = 0
    steps: int = 0
    tokens: int = 0
    misses: list[tuple[str, str, str]] = field(default_factory=list)
    valid: int | None = None  # answers of the form that was asked for; None: not counted

    def add(self, answer: Answer, right: bool) -> None:
        """Counts one answer in."""
        self.count += 1
        self.correct += right
        self.canvases += len(answer.steps)
        self.steps += sum(answer.steps)
        self.tokens += answer.tokens

    @property
    def share(self) -> float:
        """Right answers per item; 0 when nothing was asked."""
        return self.correct / self.count if self.count else 0.0

    @property
    def steps_per_canvas(self) -> float:
        return self.steps / self.canvases if self.canvases else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Committed tokens (up to and with the end of turn) per denoise step of a row."""
        return self.tokens / self.steps if self.steps else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document."""
        low, high = wilson(self.correct, self.count)
        return {
            "task": self.task,
            "mode": self.mode,
            "items": self.count,
            "correct": self.correct,
            **({} if self.valid is None else {"valid": self.valid}),
            "exact_match": round(self.share, 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "steps_per_canvas": round(self.steps_per_canvas, 3),
            "tokens_per_step": round(self.tokens_per_step, 3),
            "canvases": self.canvases,
            "tokens": self.tokens,
            "misses": [dict(zip(("prompt", "wanted", "got"), miss, strict=True)) for miss in self.misses],
        }


__all__ = ["Score", "wilson"]
