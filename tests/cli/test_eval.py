"""`canvaslm eval` as a command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import canvaslm.session
from canvaslm.cli.eval import command
from canvaslm.diffusion import check_params
from canvaslm.errors import UsageError
from canvaslm.evals.answers import Answer, Conversation
from canvaslm.evals.run import EvalOptions, Evaluation
from canvaslm.evals.score import Score
from canvaslm.types import Params

from ..bench.fake_server import faking

APP = typer.Typer()
APP.command()(command)


@pytest.fixture
def perfect_model(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A session that is never asked, and an answerer that knows the items of seed 4."""

    class Named:
        name = "oracle"
        notes = ()
        params = Params(t_max=0.7)

        def merge(self, preset: None, params: dict[str, Any]) -> Params:
            return check_params(replace(self.params, **params))

    asked: list[dict[str, Any]] = []

    class Perfect:
        def __init__(self, session: object, rows: int) -> None:
            items = [i for task in EvalOptions().chosen() for i in task.items(3, 4)]
            self.answers = {str(item.messages): item.answer for item in items}

        def __call__(
            self, conversations: Sequence[Conversation], seeds: Sequence[int], **params: Any
        ) -> Iterator[tuple[int, Answer]]:
            asked.append(params)
            for place, conversation in enumerate(conversations):
                yield place, Answer(self.answers[str(conversation)], 8, (2,))

    monkeypatch.setattr(canvaslm.session, "load", lambda model: Named())
    monkeypatch.setattr("canvaslm.evals.session_answers.SessionAnswerer", Perfect)
    return asked


def test_table_on_stdout_and_document_in_a_file(perfect_model: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    result = CliRunner().invoke(APP, ["sort,json", "-n", "3", "--seed", "4", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "oracle, seed 4" in result.stdout
    assert "sort" in result.stdout
    assert "1.000" in result.stdout
    document = json.loads(out.read_text())
    assert document["settings"]["count"] == 3
    assert document["settings"]["model"] == "oracle"
    assert document["settings"]["sampling_defaults"]["t_max"] == 0.7
    assert [(s["task"], s["mode"]) for s in document["scores"]] == [
        ("sort", "refined"), ("sort", "one shot"), ("json", "refined"), ("json", "one shot"),
    ]  # fmt: skip


def test_without_one_shot(perfect_model: list[dict[str, Any]]) -> None:
    result = CliRunner().invoke(APP, ["sort", "-n", "2", "--seed", "4", "--no-one-shot"])
    assert result.exit_code == 0, result.output
    assert "one shot" not in result.stdout


def test_a_top_k_reaches_both_modes(perfect_model: list[dict[str, Any]]) -> None:
    flags = ["--top-k", "9", "--top-k-tail-correction", "--steps", "5"]
    result = CliRunner().invoke(APP, ["sort", "-n", "1", "--seed", "4", *flags])
    assert result.exit_code == 0, result.output
    refined, one_shot = perfect_model
    assert refined == {
        "max_new_tokens": 128, "top_k": 9, "top_k_tail_correction": True, "max_denoising_steps": 5,
    }  # fmt: skip
    assert one_shot == {**refined, "max_denoising_steps": 1}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["mmlu"], UsageError),
        (["demo,lists:chess"], UsageError),
        (["-n", "0"], UsageError),
        (["--top-k-end", "4"], UsageError),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    arguments: list[str], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canvaslm.session, "load", lambda model: pytest.fail("loaded"))
    assert isinstance(CliRunner().invoke(APP, arguments).exception, error)


SWEEP = ["sort,json", "-n", "3", "--seed", "4", "--sweep", "steps=1,4", "--sweep", "top_k=0,9"]


def test_a_sweep_makes_a_table_areas_a_document_and_a_picture(
    perfect_model: list[dict[str, Any]], tmp_path: Path
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "curve.svg"
    result = CliRunner().invoke(APP, [*SWEEP, "--seeds", "2", "--json", str(out), "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    assert "steps=4, top_k=9" in result.stdout
    assert "area" in result.stdout
    document = json.loads(out.read_text())
    assert document["complete"] is True
    assert document["settings"]["sweeps"] == {"max_denoising_steps": [1, 4], "top_k": [0, 9]}
    assert [(s["items"], s["seeds"], s["correct"]) for s in document["scores"]] == [(3, 2, 6)] * 8
    assert [(c["task"], c["curve"]) for c in document["curves"]][-2:] == [
        ("all tasks", "top_k=0"), ("all tasks", "top_k=9"),
    ]  # fmt: skip
    assert {curve["area"] for curve in document["curves"]} == {1.0}
    assert plot.read_text().startswith("<svg")
    assert [call["max_denoising_steps"] for call in perfect_model[1:]] == [1, 4, 1, 4] * 2


def test_a_table_compares_with_its_first_point(perfect_model: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["sort,infill", "-n", "2", "--seed", "4", "--table", "verify", "--json", str(out)]
    result = CliRunner().invoke(APP, arguments)
    assert result.exit_code == 0, result.output
    assert "threshold .1, 2 steps" in result.stdout
    assert "+0.000 to +0.000" in result.stdout
    compared = json.loads(out.read_text())["comparisons"]
    points = [one["mode"] for one in compared if one["task"] == "sort"]
    assert points[:2] == ["plain", "checked"]
    assert points[-1] == "causal, likeliest"
    assert "causal, likeliest" not in [one["mode"] for one in compared if one["task"] == "infill"]
    assert {(one["gain"], one["passes_ratio"]) for one in compared} == {(0.0, 1.0)}
    checked = {"max_new_tokens": 128, "verify": "checked"}
    assert next(call for call in perfect_model if call.get("verify") == "checked") == checked


def test_ctrl_c_keeps_the_points_that_are_done(
    perfect_model: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the fifth of eight points, after one of its answers."""
    out, plot = tmp_path / "out.json", tmp_path / "curve.svg"
    run = Evaluation._score

    def stopped(self: Evaluation, answerer: Any, task: Any, items: Any, point: Any, tick: Any) -> Score:
        if task.name == "json":
            raise KeyboardInterrupt
        return run(self, answerer, task, items, point, tick)

    monkeypatch.setattr(Evaluation, "_score", stopped)
    result = CliRunner().invoke(APP, [*SWEEP, "--json", str(out), "--plot", str(plot)])
    assert result.exit_code == 130
    assert "stopped: 4 of 8 points are done and kept" in result.stderr
    document = json.loads(out.read_text())
    assert document["complete"] is False
    assert [score["task"] for score in document["scores"]] == ["sort"] * 4
    assert plot.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sweep", "stepz=1"], "did you mean steps"),
        (["--plot", "x.svg"], "add one"),
        (["--plot", "x.svg", "--sweep", "steps=4"], "several values"),
        (["--sweep", "steps=1,2", "--steps", "4"], "both say how many"),
        (["infill", "--url", "http://127.0.0.1:1"], "parts of its answers are given"),
        (["--url", "ftp://x"], "should look like"),
        (["--seeds", "0"], "at least one"),
        (["--table", "verfy"], "did you mean verify"),
        (["--table", "verify", "--sweep", "steps=1,2"], "--table and --sweep both say"),
        (["json", "--table", "verify", "--schema"], "--table and --schema both say"),
        (["--json", "/no/such/folder/x.json"], "no such folder"),
    ],
)
def test_mistakes_in_a_sweep_are_told_before_a_model_is_loaded(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canvaslm.session, "load", lambda model: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=says):
        CliRunner().invoke(APP, arguments, catch_exceptions=False)


def test_points_that_the_models_defaults_forbid_are_told_before_a_question(
    perfect_model: list[dict[str, Any]],
) -> None:
    with pytest.raises(UsageError, match=r"t_max = 0\.7 is below t_min = 0\.75"):
        CliRunner().invoke(APP, ["--sweep", "t_min=0.1,0.75"], catch_exceptions=False)
    assert perfect_model == []


def test_a_server_is_asked_instead_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvaslm.session, "load", lambda model: pytest.fail("loaded"))
    out = tmp_path / "out.json"
    answer = {"choices": [{"message": {"content": "no"}}]}
    with faking(whole=lambda body: (200, answer)) as fake:
        result = CliRunner().invoke(
            APP, ["lists:copy,sort", "-n", "2", "--url", fake.url, "--sweep", "steps=1,2", "--json", str(out)]
        )
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    assert document["settings"]["model"] == "fake-1"
    assert document["settings"]["url"] == fake.url
    assert len(fake.bodies) == 9, "one to warm up"
    assert {body["max_denoising_steps"] for body in fake.bodies} == {1, 2}
    assert document["scores"][0]["misses"][0]["got"] == "no"
    assert document["curves"][0]["area"] is None, "this server tells no steps"
