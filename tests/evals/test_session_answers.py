"""Batched answers of a session: the same as asking one by one. The model is the demo's in
shape, with random weights."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
import torch

from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.demo.filling import FILLING
from canvaslm.demo.tasks import TASKS
from canvaslm.engine import Engine
from canvaslm.errors import PromptTooLong, UsageError
from canvaslm.evals.demo import heldout_items
from canvaslm.evals.run import EvalOptions, evaluate
from canvaslm.evals.session_answers import SessionAnswerer
from canvaslm.model.diffusion_gemma import DiffusionGemma, DiffusionGemmaConfig
from canvaslm.session import Session
from canvaslm.text.chat import ChatTemplate
from canvaslm.text.tokenizer import Tokenizer
from canvaslm.types import Params
from tests.adapters import random_adapter


@pytest.fixture(scope="module")
def session() -> Session:
    config = DiffusionGemmaConfig.from_dict(json.loads((MODEL_FOLDER / "config.json").read_text()))
    torch.manual_seed(0)
    model = DiffusionGemma(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Session(
        Engine(model),
        Tokenizer.from_folder(MODEL_FOLDER),
        ChatTemplate.from_folder(MODEL_FOLDER),
        params=Params(max_denoising_steps=4),
        eos_token_ids=(1, 6),
    )


def test_answers_equal_those_given_one_by_one(session: Session) -> None:
    items = heldout_items(TASKS["json"], 5, 0)
    conversations = [item.messages for item in items]
    seeds = [10 + i for i in range(5)]
    answers = dict(SessionAnswerer(session, rows=3)(conversations, seeds, max_new_tokens=128))
    assert sorted(answers) == [0, 1, 2, 3, 4]
    for place, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True)):
        alone = session.generate(conversation, seed=seed, max_new_tokens=128)
        assert answers[place].text == alone.text
        assert answers[place].steps == tuple(canvas.steps for canvas in alone.canvases)
        assert answers[place].tokens == alone.usage.completion_tokens


def test_random_weights_score_nothing_in_one_step_a_canvas(session: Session) -> None:
    scores = evaluate(SessionAnswerer(session), EvalOptions(count=2, tasks=("sudoku",)))
    assert [(score.mode, score.correct) for score in scores] == [("refined", 0), ("one shot", 0)]
    assert scores[1].steps_per_canvas == 1.0
    assert 1.0 < scores[0].steps_per_canvas <= 4.0


def test_what_is_given_of_an_answer_comes_back_and_its_holes_have_their_length(session: Session) -> None:
    """Random weights: whatever fills the holes, all else is the answer's, over two canvases as well."""
    items = [FILLING["infill"].sample(Random(f"given/{i}"), "heldout") for i in range(40)]
    items = sorted(items, key=lambda item: len(item.answer))[:: len(items) - 1]  # the shortest, the longest
    pieces = [item.pieces() for item in items]
    answers = dict(
        SessionAnswerer(session)([i.messages for i in items], [1, 2], pieces=pieces, max_new_tokens=128)
    )
    for place, item in enumerate(items):
        (start, end), text = item.holes[0], answers[place].text
        assert text.startswith(item.answer[:start])
        assert text.endswith(item.answer[end:])
        hole = len(session.tokenizer.encode(item.answer[start:end]))
        around = sum(len(session.tokenizer.encode(text)) for text, given in item.pieces() if given)
        assert answers[place].tokens == around + hole + 1  # with the turn's end
        assert len(answers[place].steps) == -(-answers[place].tokens // 64)
    assert len(answers[1].steps) == 2


def test_errors_come_through(session: Session) -> None:
    with pytest.raises(PromptTooLong):
        list(SessionAnswerer(session)([[{"role": "user", "content": "x" * 9000}]], [0]))
    with pytest.raises(UsageError, match="max_denoising_steps"):
        list(SessionAnswerer(session)([[{"role": "user", "content": "x"}]], [0], max_denoising_steps=0))


def test_prompts_are_those_of_training(session: Session) -> None:
    from canvaslm.demo.stream import Encoder, example_at

    encoder = Encoder()
    for index in range(300):
        example = example_at(2, index)
        assert session.encode(example.messages, thinking=bool(example.thought)) == encoder.prompt(example)


def test_an_adapter_is_used_for_every_answer(session: Session) -> None:
    session.adapters.add("one", random_adapter(session.engine.runner.model, seed=1))
    asked = [item.messages for item in heldout_items(TASKS["json"], 2, 0)]

    def texts(adapter: str | None) -> list[str]:
        found = dict(SessionAnswerer(session, 2, adapter)(asked, [1, 2], max_new_tokens=16))
        return [found[i].text for i in range(2)]

    options: Any = {"max_new_tokens": 16, "adapter": "one"}
    alone = [session.generate(one, seed=i, **options).text for i, one in enumerate(asked, 1)]
    assert texts("one") == alone != texts(None)
    session.adapters.unload("one")
