"""The packages that ask for decisions, against the demo model behind a socket of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import canvaslm
from tests.server.world import Running, serving

STATE = "user: My order never came. I want my money back!"


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with canvaslm.load() as session, serving(session) as running:
        yield running


def test_openais_client_reads_every_answer(demo: Running) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{demo.port}/v1", api_key="none", max_retries=0)
    if not hasattr(client, "decisions"):
        pytest.skip(f"openai {openai.__version__} has no client.decisions")
    made = client.decisions.create(
        model="demo",
        input=STATE,
        questions=[
            {"type": "predicate", "name": "refund", "instructions": "The customer asks for a refund."},
            {"type": "choice", "instructions": "Tone?", "choices": [{"value": "angry"}, {"value": True}]},
            {
                "type": "score",
                "instructions": "How urgent?",
                "levels": [{"label": "can wait"}, {"label": "now"}],
            },
        ],
    )
    predicate, choice, score = made.answers
    assert predicate.type == "predicate"
    assert 0 <= predicate.probability <= 1
    assert choice.choice in ("angry", True)
    assert [one.value for one in choice.probabilities] == ["angry", True]
    assert 0 <= score.score <= 1
    with pytest.raises(openai.BadRequestError, match="questions"):
        client.decisions.create(model="demo", input=STATE, questions=[])


def test_system_ones_client_reads_every_answer(demo: Running) -> None:
    sdk = pytest.importorskip("typesafe_sdk")
    client = sdk.TypeSafeClient(api_key="none", base_url=f"http://127.0.0.1:{demo.port}", model="demo")
    questions = {
        "spam": sdk.Noul(instructions="Is this spam?"),
        "the.tone": sdk.Choice(instructions="Tone?", criteria={"calm": None, "angry": "loud"}),
        "u": sdk.Score(instructions="How urgent?", criteria=["can wait", "today"]),
    }
    said = client.system_one({"text": STATE}, questions)
    kinds = {name: type(answer).__name__ for name, answer in said.answers.items()}
    assert kinds == {"spam": "NoulAnswer", "the.tone": "ChoiceAnswer", "u": "ScoreAnswer"}
    with pytest.raises(sdk.TypeSafeUnprocessableEntityError):
        client.system_one("x", {"a": sdk.Box(instructions="Where?")})


def jevbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("jevbench")
    command = [sys.executable, "-m", "jevbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_jevbench_checks_the_server(demo: Running) -> None:
    done = jevbench("check", "--url", f"http://127.0.0.1:{demo.port}/v1/systemone", "--model", "demo")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_jevbench_reads_all_answers_of_its_examples(demo: Running, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = jevbench(
        "eval", "--suite", "examples", "--url", f"http://127.0.0.1:{demo.port}/v1/systemone",
        "--model", "demo", "--no-cache", "--seed", "0", "--out", str(report),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    scores: Any = json.loads(report.read_text())["scores"]
    # What other questions are asked beside one must not matter. The rest is the model's matter.
    assert scores["pillars"]["BAT"] == 1.0
    assert scores["relations"]["key_rename"] == 1.0
