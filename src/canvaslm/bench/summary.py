"""Percentiles of a list of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, interpolated linearly between the two nearest ones.

    The definition numpy calls "linear": rank (n - 1) * percent / 100 of the sorted values. Raises ValueError
    for an empty list or a percent outside 0 .. 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low, high = math.floor(rank), math.ceil(rank)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def median(values: Sequence[float]) -> float:
    """The 50th percentile."""
    return percentile(values, 50)


@dataclass(frozen=True)
class Summary:
    """A distribution in numbers; all in the unit of the values."""

    count: int
    mean: float
    min: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        """None for no values."""
        if not values:
            return None
        p50, p95, p99 = (percentile(values, p) for p in (50, 95, 99))
        return cls(len(values), sum(values) / len(values), min(values), p50, p95, p99, max(values))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


__all__ = ["Summary", "median", "percentile"]
