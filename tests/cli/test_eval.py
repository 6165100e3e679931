"""`canvaslm eval` as a command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import canvaslm.session
from canvaslm.cli.eval import command
from canvaslm.errors import NotFound, UsageError
from canvaslm.evals.answers import Answer, Conversation
from canvaslm.evals.demo import EvalOptions, heldout_items
from canvaslm.types import Params

APP = typer.Typer()
APP.command()(command)


@pytest.fixture
def perfect_model(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A session that is never asked, and an answerer that knows the items of seed 4."""

    class Named:
        name = "oracle"
        notes = ()
        params = Params(t_max=0.7)

    asked: list[dict[str, Any]] = []

    class Perfect:
        def __init__(self, session: object, rows: int) -> None:
            items = [i for task in EvalOptions().chosen() for i in heldout_items(task, 3, 4)]
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
    result = CliRunner().invoke(
        APP, ["demo", "-n", "3", "--seed", "4", "--tasks", "sort,json", "--json", str(out)]
    )
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
    result = CliRunner().invoke(APP, ["-n", "2", "--seed", "4", "--tasks", "sort", "--no-one-shot"])
    assert result.exit_code == 0, result.output
    assert "one shot" not in result.stdout


def test_a_top_k_reaches_both_modes(perfect_model: list[dict[str, Any]]) -> None:
    flags = ["--top-k", "9", "--top-k-tail-correction", "--steps", "5"]
    result = CliRunner().invoke(APP, ["-n", "1", "--seed", "4", "--tasks", "sort", *flags])
    assert result.exit_code == 0, result.output
    refined, one_shot = perfect_model
    assert refined == {
        "max_new_tokens": 128, "top_k": 9, "top_k_tail_correction": True, "max_denoising_steps": 5,
    }  # fmt: skip
    assert one_shot == {**refined, "max_denoising_steps": 1}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["mmlu"], NotFound),
        (["--tasks", "chess"], UsageError),
        (["-n", "0"], UsageError),
        (["--top-k-end", "4"], UsageError),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    arguments: list[str], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canvaslm.session, "load", lambda model: pytest.fail("loaded"))
    assert isinstance(CliRunner().invoke(APP, arguments).exception, error)
