"""Whole generations with a top-k: against the oracle, in a crowd, and on the demo model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import canvaslm
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.demo.tasks import TASKS
from canvaslm.engine.reference import generate
from canvaslm.evals.demo import heldout_items
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.ops import cpu
from canvaslm.session import Session
from canvaslm.types import Params, Request
from canvaslm.weights.gguf.quantize import write_gguf
from canvaslm.weights.gguf.source import open_source
from tests.tiny import tiny_model

from .crowd import outputs

PROMPT = tuple(range(3, 20))
PARAMS = Params(max_new_tokens=32, max_denoising_steps=8, confidence_threshold=0.01)
CHOICES: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 40, "top_k_tail_correction": True},
    {"top_k_start": 60, "top_k_end": 2},
    {"top_k_start": 9, "top_k_end": 3, "top_k_tail_correction": True, "top_k": 1},
]


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(canvas_length=16)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_engine_writes_what_the_oracle_writes(
    model: DiffusionGemma, choice: dict[str, Any], seed: int
) -> None:
    params = replace(PARAMS, seed=seed, **choice)
    assert outputs(model, [Request(PROMPT, params)])[0] == generate(model, PROMPT, params)[0]


def test_a_crowd_of_different_top_ks_changes_nothing(model: DiffusionGemma) -> None:
    """Prompts of different lengths, so that rows are at different steps, and k differs from row to row."""
    requests = [
        Request(PROMPT[i:], replace(PARAMS, seed=i, max_denoising_steps=4 + i, **choice))
        for i, choice in enumerate(CHOICES)
    ]
    assert outputs(model, requests) == [outputs(model, [request])[0] for request in requests]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo-Q8_0.gguf"
    write_gguf(open_source(MODEL_FOLDER), path, "Q8_0")
    return path


@pytest.fixture(scope="module", params=["fp32", "Q8_0"])
def session(request: pytest.FixtureRequest) -> Session:
    """The demo model, plain and on native kernels."""
    if request.param == "fp32":
        return canvaslm.load()
    if not cpu.available():
        pytest.skip("no native kernels here")
    return canvaslm.load(str(request.getfixturevalue("quantised")))


def test_a_crowd_on_the_demo_model(session: Session) -> None:
    items = heldout_items(TASKS["sudoku"], len(CHOICES), 0)
    requests = [
        session.prepare(item.messages, seed=i, max_new_tokens=64, **choice)
        for i, (item, choice) in enumerate(zip(items, CHOICES, strict=True))
    ]
    model = session.engine.runner.model
    assert outputs(model, requests) == [outputs(model, [request])[0] for request in requests]


def test_large_is_the_default_and_one_is_greedy(session: Session) -> None:
    def text(**params: Any) -> str:
        return session.generate("List three facts as JSON", seed=7, max_new_tokens=64, **params).text

    whole = text()
    assert text(top_k=1024) == text(top_k=10**6, top_k_tail_correction=True) == whole
    assert text(top_k=1) == text(top_k=1, temperature=0)
    assert text(top_k_start=3000, top_k_end=2000) == whole


def test_sudokus_are_still_solved(session: Session) -> None:
    task = TASKS["sudoku"]
    items = heldout_items(task, 8, 0)
    solved = [
        task.check(item, session.generate(item.messages, seed=i, top_k=64, top_k_tail_correction=True).text)
        for i, item in enumerate(items)
    ]
    assert sum(solved) >= 7
