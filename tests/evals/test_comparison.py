"""Points of an eval compared with the first, answer by answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from canvaslm.evals.answers import Answer
from canvaslm.evals.comparison import comparisons
from canvaslm.evals.points import Point
from canvaslm.evals.report import comparison_table
from canvaslm.evals.score import ALL, Score
from canvaslm.evals.standard import standard


def scored(task: str, mode: str, rights: Sequence[int], reads: int = 0, seconds: float = 2.0) -> Score:
    """Of two answers to each item, `rights` says how many are right."""
    score = Score(task, mode, point=Point(mode), seeds=2, seconds=seconds)
    for place, right in enumerate(rights):
        for seed in range(2):
            score.add(place, Answer("", 12, (3,), reads), seed < right)
    return score


def test_gains_are_of_the_same_items() -> None:
    """The shares' own intervals overlap widely; that of the gain does not reach 0."""
    plain = scored("a", "plain", [0] * 10 + [2] * 30)
    better = scored("a", "better", [2] * 6 + [0] * 4 + [2] * 30, reads=1, seconds=3.0)
    first, second = comparisons([plain, better])
    assert first.interval == (0.0, 0.0)
    assert second.gain == pytest.approx(0.15)
    low, high = second.interval
    assert 0.03 < low < 0.15 < high < 0.3
    assert plain.interval[1] > better.interval[0]
    assert second.passes == pytest.approx(4 / 3)
    assert second.time == pytest.approx(1.5)
    assert (second.score.tokens_per_pass, second.score.steps_per_canvas) == (3.0, 3.0)
    assert comparisons([plain, better])[1].interval == second.interval, "the same for ever"


def test_all_tasks_are_compared_at_points_that_each_has() -> None:
    scores = [
        scored("a", "plain", [0, 2]), scored("a", "x", [2, 2]), scored("a", "rare", [2, 2]),
        scored("b", "plain", [2, 2]), scored("b", "x", [1, 2]),
    ]  # fmt: skip
    found = comparisons(scores)
    assert [(one.score.task, one.score.mode) for one in found[-2:]] == [(ALL, "plain"), (ALL, "x")]
    assert found[-1].gain == pytest.approx((0.5 - 0.25) / 2)
    assert comparison_table(found, "t").row_count == 7


def test_a_reader_alone_has_passes_too() -> None:
    causal = Score("a", "causal", point=Point("causal"))
    causal.add(0, Answer("", 12, (0,) * 12, 12), True)
    assert (causal.passes, causal.tokens_per_pass, causal.steps_per_canvas) == (12.0, 1.0, 0.0)
    assert comparisons([causal])[0].time is None, "no time is known"


def test_the_points_of_a_table_are_parameters() -> None:
    points = standard("verify")
    labels = [point.label for point in points]
    assert len(set(labels)) == len(labels)
    for point in points:
        point_params = dict(point.params)
        assert set(point_params) <= {"verify", "verify_threshold", "verify_steps", "decoding", "temperature"}
