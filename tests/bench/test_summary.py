from __future__ import annotations

import numpy as np
import pytest

from canvaslm.bench.summary import Summary, median, percentile


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7], 50, 7),
        ([7], 99, 7),
        ([1, 2], 50, 1.5),
        ([3, 1, 2], 50, 2),
        ([10, 20, 30, 40], 0, 10),
        ([10, 20, 30, 40], 100, 40),
        ([10, 20, 30, 40], 95, 38.5),
        (list(range(101)), 99, 99),
        (list(range(101)), 95, 95),
    ],
)
def test_percentiles_of_known_data(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected, abs=1e-12)


def test_percentiles_equal_numpys() -> None:
    values = np.random.default_rng(0).exponential(size=997).tolist()
    for percent in (0, 1, 37.5, 50, 95, 99, 100):
        assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-12)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1], -1), ([1], 101)])
def test_no_percentile_of_nothing(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_a_summary_says_how_many_there_were() -> None:
    found = Summary.of([4.0, 1.0, 1.0, 2.0])
    assert found is not None
    assert found.to_dict() == pytest.approx(
        {"count": 4, "mean": 2.0, "min": 1.0, "p50": 1.5, "p95": 3.7, "p99": 3.94, "max": 4.0}
    )
    assert Summary.of([]) is None
    assert median([5, 1, 3]) == 3
