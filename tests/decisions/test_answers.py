"""What follows from probabilities, by numbers worked out by hand; questions that cannot be asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from canvaslm.decisions.answers import Decision, LabelReading, decided
from canvaslm.decisions.calibration import Calibration, parsed_calibration, read_calibration
from canvaslm.decisions.prompt import single, state_text
from canvaslm.decisions.questions import choice, predicate, score
from canvaslm.errors import BadModelFile, UsageError


def decision(kind: Any, *shares: float, mass: float = 1.0) -> Decision:
    numbers = range(len(shares))
    return Decision(kind, tuple(numbers), shares, tuple(map(str, numbers)), mass, True)


def test_scores_and_confidence() -> None:
    tone = decision("choice", 0.8, 0.2, mass=0.5)
    assert tone.confidence == pytest.approx(0.6) and tone.sureness == pytest.approx(0.4)
    urgency = decision("score", 0.3, 0.7)
    assert urgency.score == pytest.approx(0.7) and urgency.confidence == pytest.approx(0.4)
    spread = decision("score", 0.1, 0.2, 0.7)
    assert spread.score == pytest.approx(1.6)
    assert spread.confidence == pytest.approx(1 - 0.4 / (2 / 3))
    assert decision("score", 0.5, 0.0, 0.5).confidence == 0
    assert decision("choice", 1.0).confidence == 1
    assert decision("choice", 0.25, 0.25, 0.25, 0.25).confidence == pytest.approx(0)
    assert decision("predicate", 0.2, 0.8).probability == 0.2


def test_draws_are_averaged_as_probabilities() -> None:
    readings = [
        LabelReading([math.log(0.9), math.log(0.1)], 0.6, False),
        LabelReading([math.log(0.5), math.log(0.5)], 0.2, True),
    ]
    made = decided(predicate("So?"), readings, 1.0)
    assert made.probabilities == pytest.approx((0.7, 0.3))
    assert made.label_mass == pytest.approx(0.4) and made.argmax_is_label
    flat = decided(predicate("So?"), readings, 2.0)
    ratio = math.sqrt(0.7 / 0.3)
    assert flat.probabilities[0] == pytest.approx(ratio / (1 + ratio))


def test_without_any_probability_all_are_as_likely() -> None:
    never = LabelReading([-math.inf, -math.inf], 0.0, False)
    assert decided(choice("Which?", ["a", "b"]), [never], 1.0).probabilities == (0.5, 0.5)


def test_the_prompt_lists_options_with_their_labels() -> None:
    asked = choice("Tone?", {"angry": "raises the voice", "calm": None, True: ""})
    assert single(asked, [1, 2, 0], ["A", "B", "C"]) == (
        "Question: Tone?\nA: calm\nB: true\nC: angry - raises the voice\n"
        "Answer with the letter of one option only."
    )
    assert single(predicate("It rains."), [0, 1], ["AA", "AB"]).endswith("the letters of one option only.")
    assert state_text({"a": ["é", None]}) == '{"a": ["é", null]}' and state_text("<x>") == "<x>"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choice("Which?", []), "choices has 0 entries: give 1 to 255"),
        (lambda: choice("Which?", range(256)), "choices has 256 entries"),
        (lambda: choice("Which?", ["a", "b", "a"]), "choices has 'a' twice"),
        (lambda: choice("Which?", "abc"), "choices should be a list of values, found str"),
        (lambda: choice("Which?", [["a"]]), "found list"),
        (lambda: score("How?", [1, 2]), "level 0 should be a text, found int"),  # type: ignore[list-item]
        (lambda: predicate(3), "instructions should be a text, found int"),  # type: ignore[arg-type]
        (lambda: state_text(object()), "state should be a text or plain data"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_values_of_different_types_differ() -> None:
    asked = choice("Which?", [True, "true", 1, 1.0, "1", None])
    assert [option.text for option in asked.options] == ["true", "true", "1", "1.0", "1", "null"]


def test_decision_json(tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    assert read_calibration(None) == Calibration()
    made = Calibration("values", {"predicate": 1.5, "choice": 0.8}, ("yes", "no"))
    path.write_text(json.dumps(made.to_json()))
    assert read_calibration(path) == made and made.heat("score") == 1.0
    assert parsed_calibration({"temperature": 2}).heat("score") == 2.0
    assert parsed_calibration({"temperature": {"noul": 3}, "more": 1}).heat("predicate") == 3.0


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"labels": "words"}', '{"labels": ["A", "A"]}', '{"temperature": {"choice": 0}}',
     '{"temperature": {"box": 1}}', '{"temperature": true}', '{"noul_options": ["yes"]}'],
)  # fmt: skip
def test_a_broken_decision_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "decision.json"
    path.write_text(text)
    with pytest.raises(BadModelFile, match=r"decision\.json"):
        read_calibration(path)
