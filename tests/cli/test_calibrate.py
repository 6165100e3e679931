"""`canvaslm calibrate`: the demo model's answers before and after, and the file that is read with a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import canvaslm
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.evals.known_answers import known_answers
from canvaslm.session import Session

from .conftest import Program


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as loaded:
        yield loaded


@pytest.fixture(scope="module")
def labelled() -> list[dict[str, Any]]:
    """Sorted numbers among wrong orders: the demo model is right more often than not, and too sure."""
    return list(known_answers("sort", 60, 0))


def test_before_and_after(
    program: Program, session: Session, labelled: list[dict[str, Any]], tmp_path: Path
) -> None:
    file, out = tmp_path / "labelled.jsonl", tmp_path / "decision.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in labelled))
    shown = program("calibrate", str(file), "-o", str(out), session=session)
    assert shown.code == 0, shown.err
    assert shown.out.startswith(f"choice: {len(labelled)} answers, temperature ")
    assert "calibration error" in shown.out and "after less before" in shown.out
    made = json.loads(out.read_text())
    assert made["labels"] == "values" and made["temperature"]["choice"] > 1
    assert program("calibrate", str(file), "-o", str(out), session=session).code == 2  # it is there
    found = program("calibrate", str(file), "--json", session=session).object
    figures = found["kinds"]["choice"]["figures"]
    accuracy, _, change = figures["accuracy"]
    assert 0.6 < accuracy["value"] <= 1 and change["value"] == 0
    before, after, _ = figures["log loss"]
    assert after["value"] < before["value"]


def test_what_cannot_be_fitted_is_told(program: Program, session: Session, tmp_path: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    file.write_text('{"question": {"type": "predicate", "instructions": "?"}, "answer": true}\n')
    shown = program("calibrate", str(file), session=session)
    assert shown.code == 2 and "no kind of question has 20 answers" in shown.err
    assert program("calibrate", str(file), "--joint", session=session).code == 2
    file.write_text("{\n")
    assert "line 1:" in program("calibrate", str(file), session=session).err


def test_the_file_is_read_with_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, folder)
    asked = canvaslm.choice("Sort: 51 17 33", ["17 33 51", "17 51 33", "33 17 51"])
    written = {"labels": "values", "temperature": {"choice": 5.0}}
    with canvaslm.load(folder) as plain:
        cool = plain.decide("", asked)[0]
    (folder / "decision.json").write_text(json.dumps(written))
    with canvaslm.load(folder) as warm:
        assert warm.calibration.heat("choice") == 5.0
        flat = warm.decide("", asked)[0]
    assert flat.best == cool.best == "17 33 51" and flat.probability < cool.probability
    assert flat.label_mass == cool.label_mass
