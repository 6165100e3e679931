"""Temperatures and figures: by numbers worked out by hand, and on answers whose temperature is known."""

from __future__ import annotations

import math
from random import Random

import pytest

from canvaslm.decisions.answers import tempered
from canvaslm.decisions.fitting import (
    LabelledAnswer,
    accuracy,
    brier,
    calibrated,
    calibration_error,
    fit_temperature,
    log_loss,
)
from canvaslm.decisions.labelled import labelled_questions
from canvaslm.errors import UsageError


def test_figures() -> None:
    shares, truths = [[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]], [0, 1, 1]
    assert accuracy(shares, truths) == pytest.approx(2 / 3)
    assert brier(shares, truths) == pytest.approx((0.08 + 0.72 + 0.02) / 3)
    assert log_loss(shares, truths) == pytest.approx(-(math.log(0.8) + math.log(0.4) + math.log(0.9)) / 3)
    assert calibration_error(shares, truths) == pytest.approx((0.2 + 0.6 + 0.1) / 3)
    assert calibration_error([[1.0, 0.0]] * 4, [0, 0, 0, 1]) == pytest.approx(0.25)


def simulated(count: int, heat: float, seed: int) -> list[LabelledAnswer]:
    """Answers of a model whose probabilities are too sure by a temperature: at it, they are right."""
    rng = Random(seed)
    made = []
    for _ in range(count):
        logs = [rng.gauss(0, 1.5) for _ in range(4)]
        right = tempered(logs, 1.0)
        truth = rng.choices(range(4), right)[0]
        made.append(LabelledAnswer("choice", tuple(tempered(logs, 1 / heat)), truth))
    return made


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.5])
def test_a_temperature_is_found_again(heat: float) -> None:
    assert fit_temperature(simulated(4000, heat, 1)) == pytest.approx(heat, rel=0.1)


def test_a_temperature_makes_overconfident_answers_right() -> None:
    found = calibrated(simulated(1000, 3.0, 2), draws=200)
    assert found.count == 1000 and found.temperature == pytest.approx(3.0, rel=0.2)
    for name in ("Brier score", "calibration error", "log loss"):
        before, after, change = found.figures[name]
        assert after.value < before.value and change.high < 0, name
        assert before.low <= before.value <= before.high
        assert change.value == pytest.approx(after.value - before.value)
    assert found.figures["calibration error"][1].value < 0.05
    before, after, change = found.figures["accuracy"]
    assert before == after and change.value == change.low == change.high == 0


def test_probabilities_of_nothing_are_no_end() -> None:
    answers = [LabelledAnswer("predicate", (1.0, 0.0), n // 2 % 2) for n in range(20)]
    assert fit_temperature(answers) == pytest.approx(20.0, rel=0.01)
    assert calibrated(answers, draws=20).figures["log loss"][1].value < 20


def test_labelled_lines() -> None:
    predicate = '{"state": {"a": 1}, "question": {"type": "predicate", "instructions": "?"}, "answer": false}'
    asked = '{"type": "score", "instructions": "?", "levels": [{"label": "low"}, {"label": "high"}]}'
    lines = [
        predicate,
        "",
        f'{{"question": {asked}, "answer": "high"}}',
        f'{{"question": {asked}, "answer": 1}}',
    ]
    one, two, three = labelled_questions("\n".join(lines), "file")
    assert (one.truth, two.truth, three.truth) == (1, 1, 1) and one.state == {"a": 1} and two.state == ""


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"question": {"type": "predicate", "instructions": "?"}}',
     '{"question": {"type": "predicate", "instructions": "?"}, "answer": 1}',
     '{"question": {"type": "box"}, "answer": true}'],
)  # fmt: skip
def test_a_line_that_is_wrong_is_named(line: str) -> None:
    with pytest.raises(UsageError, match="file, line 3:"):
        labelled_questions(f"\n\n{line}", "file")
