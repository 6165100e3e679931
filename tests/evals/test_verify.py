"""What verifying is worth: the causal reader puts right what canvases get wrong of themselves."""

from __future__ import annotations

import pytest

import canvaslm
from canvaslm.evals.comparison import comparisons
from canvaslm.evals.run import EvalOptions, Evaluation
from canvaslm.evals.session_answers import SessionAnswerer
from canvaslm.evals.standard import standard


@pytest.mark.slow
def test_checked_answers_are_better_at_sorting_and_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds are fixed, so this is no matter of chance: with other items plain answers are right to 0.83-0.93,
    checked ones to 0.95-1.00."""
    points = [point for point in standard("verify") if point.label in ("plain", "checked")]
    monkeypatch.setattr("canvaslm.evals.run.standard", lambda name: points)
    options = EvalOptions(count=40, tasks=("sort",), seed=0, table="verify")
    plain, checked = comparisons(list(Evaluation(options).scores(SessionAnswerer(canvaslm.load()))))
    assert checked.gain >= 0.1
    assert checked.interval[0] > 0
    assert checked.score.share > 0.95
    assert checked.passes is not None
    assert checked.passes <= 1.4, (plain.score.passes, checked.score.passes)
