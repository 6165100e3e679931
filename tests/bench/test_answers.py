"""Seconds an answer: costs of passes measured here, times the passes that answers of its length took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from canvaslm.bench.answers import Costs, answer_report, measure_costs, seconds
from canvaslm.bench.compare import compare
from canvaslm.bench.habits import Habit, as_document, habit_of, read_habits
from canvaslm.diffusion.params import PRESETS
from canvaslm.errors import NotFound, UsageError
from tests.server.world import tiny_session

from .test_command import Bench, bench, whole

__all__ = ["bench"]

COSTS = Costs(128, 64, ((16, 2.0), (32, 3.0), (64, 5.0)), token=0.5, commit=4.0, read=6.8)


def habit(preset: str = "quality", fill: float = 0.25, **changes: float) -> Habit:
    counted = {"steps": 3.0, "places": 1.0, "reads": 0.0, "commits": 0.0, **changes}
    return Habit(preset, 10, fill, **counted)


@pytest.mark.parametrize(
    ("places", "took"), [(64, 5.0), (32, 3.0), (48, 4.0), (20, 2.25), (8, 2.0), (100, 5.0)]
)
def test_costs_between_those_measured_lie_on_a_line(places: float, took: float) -> None:
    assert COSTS.step(places) == pytest.approx(took)
    assert Costs(1, 8, ((8, 2.0),)).step(3) == 2.0


def test_seconds_are_passes_times_costs() -> None:
    assert seconds(COSTS, habit(), 16) == pytest.approx(3 * 5.0)
    assert seconds(COSTS, habit(places=0.5), 16) == pytest.approx(3 * 3.0)
    assert seconds(COSTS, habit("causal", steps=0, places=0), 16) == pytest.approx(16 * 0.5)
    # A read of 22 of 64 tokens lies a third of the way from one token to all.
    assert seconds(COSTS, habit("checked", reads=2), 22) == pytest.approx(3 * 5.0 + 2 * (0.5 + 6.3 / 3))
    assert seconds(COSTS, habit(commits=1.5), 90) == pytest.approx(3 * 5.0 + 1.5 * 4.0)
    without = Costs(128, 64, COSTS.steps)
    assert seconds(without, habit("causal"), 5) is None
    assert seconds(without, habit("checked", reads=1), 5) is None
    assert seconds(without, habit(), 5) == pytest.approx(15)


def test_the_habit_of_a_length_is_the_nearest_one() -> None:
    habits = [habit(fill=0.1, steps=2), habit(fill=0.4, steps=4), habit(fill=1.5, steps=15, commits=1)]
    assert [habit_of(habits, "quality", fill).steps for fill in (0.05, 0.15, 0.3)] == [2, 2, 4]
    longer, shorter = habit_of(habits, "quality", 3.0), habit_of(habits, "quality", 0.9)
    assert (longer.steps, longer.commits) == (30, 2)
    assert shorter.steps == pytest.approx(9) and shorter.commits == 0
    with pytest.raises(UsageError, match="fast has no habits: known are quality"):
        habit_of(habits, "fast", 1)


def test_a_report_sets_presets_beside_the_reference() -> None:
    habits = [habit(), habit("balanced", steps=2)]
    rows = answer_report(COSTS, habits, [16, 30])
    assert [(row["preset"], row["tokens"]) for row in rows] == [
        ("quality", 16), ("quality", 30), ("balanced", 16), ("balanced", 30)
    ]  # fmt: skip
    assert [row["ratio"] for row in rows] == [1, 1, 1.5, 1.5]
    assert rows[2]["seconds"] == pytest.approx(10) and rows[2]["places"] == 128


def test_costs_are_measured_at_so_many_computed_places() -> None:
    """The engine is asked for steps of just so many places."""
    engine = tiny_session().engine
    told: list[str] = []
    costs = measure_costs(engine, 20, repeats=2, tell=told.append)
    whole_canvas = engine.config.canvas_length
    assert costs.canvas == whole_canvas == costs.steps[-1][0]
    assert all(took > 0 for _, took in costs.steps) and costs.token and costs.commit and costs.read
    assert [places for places, _ in costs.steps] == sorted({places for places, _ in costs.steps})
    assert f"a step of {whole_canvas} places" in told


def test_the_habits_that_ship_know_every_preset() -> None:
    habits = read_habits()
    assert {habit.preset for habit in habits} == set(PRESETS)
    quality, lean = (habit_of(habits, name, 0.2) for name in ("quality", "lean"))
    assert lean.steps * lean.places < quality.steps * quality.places


def test_files_of_habits(tmp_path: Path) -> None:
    file = tmp_path / "h.json"
    file.write_text(as_document([habit(), habit("lean", steps=2.5)], {"model": "mine"}))
    assert [h.preset for h in read_habits(file)] == ["quality", "lean"]
    with pytest.raises(NotFound, match="no such file"):
        read_habits(tmp_path / "none.json")
    for text in ("{", '{"habits": []}', '{"habits": [{"preset": "a"}]}', "[]"):
        file.write_text(text)
        with pytest.raises(UsageError, match="not a file of habits"):
            read_habits(file)


def test_the_command(bench: Bench, tmp_path: Path) -> None:
    code, out, _ = bench("--answer", "5,20", "--context", "10", "--steps", "1", "--json", "-")
    content = whole(out)
    assert (code, content["kind"], content["settings"]["answer"]) == (0, "answers", [5, 20])
    assert {row["preset"] for row in content["results"]["answers"]} == set(PRESETS)
    assert content["results"]["costs"]["context"] == 10
    habits = tmp_path / "h.json"
    habits.write_text(json.dumps({"habits": content["results"]["habits"]}))
    code, out, _ = bench(
        "--answer", "5", "--context", "10", "--steps", "1", "--preset", "lean", "--habits", str(habits)
    )
    assert code == 0
    assert "seconds an answer" in out and "lean" in out and "causal" not in out.partition("a pass behind")[0]
    assert "A model of the time" in out


def test_two_documents_are_compared_by_every_cost_and_answer(bench: Bench) -> None:
    first = whole(bench("--answer", "5", "--context", "10", "--steps", "1", "--json", "-")[1])
    second = json.loads(json.dumps(first))
    for step in second["results"]["costs"]["steps"]:
        step["seconds"] *= 2
    left = second["results"]["answers"].pop()
    rows, single = compare(first, second)
    gains = {row.name: row.gain for row in rows}
    places = first["model"]["canvas_length"]
    assert gains[f"context 10: step of {places} places, ms"] == pytest.approx(0.5)
    assert gains["context 10: a causal token, ms"] == gains["quality: 5 tokens, s"] == 1
    assert single == [f"{left['preset']}: 5 tokens, s"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--answer", "0"], "--answer 0: should be whole numbers from 1 on"),
        (["--answer", "5", "--step"], "--step and --answer are different"),
        (["--answer", "5", "--url", "http://127.0.0.1:1"], "--url and --answer are different"),
        (["--answer", "5", "--temperature", "0"], "leave out temperature"),
        (["--answer", "5", "--context", "8,16"], "one --context"),
        (["--habits", "h.json"], "--habits goes with --answer"),
        (["--answer", "5", "--habits", "none.json"], "none.json: no such file"),
    ],
)
def test_what_cannot_be_measured(bench: Bench, arguments: list[str], said: str) -> None:
    code, _, err = bench(*arguments)
    assert code == (3 if "no such file" in said else 2) and said in " ".join(err.split())
