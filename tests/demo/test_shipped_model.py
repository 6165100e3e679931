"""The model that ships: small enough, good enough, and the same to transformers as to us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import canvaslm
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.demo.puzzle import random_puzzle, verdict
from canvaslm.demo.stream import Encoder
from canvaslm.demo.tasks import TASKS
from canvaslm.evals.demo import MAX_NEW_TOKENS, heldout_items
from canvaslm.evals.points import REFINED
from canvaslm.evals.run import EvalOptions, evaluate
from canvaslm.evals.session_answers import SessionAnswerer
from canvaslm.session import Session

COMPARED = {"sudoku": 100, "functions": 60, "reverse": 60}


@pytest.fixture(scope="module")
def session() -> Session:
    return canvaslm.load()


def test_the_checkpoint_is_small_and_bf16() -> None:
    assert (MODEL_FOLDER / "model.safetensors").stat().st_size <= 6_000_000
    assert (MODEL_FOLDER / "README.md").read_text().count("|") > 50  # the card has its table


def test_it_solves_most_puzzles_and_says_so_only_when_it_did(session: Session) -> None:
    solved = 0
    for seed in range(12):
        puzzle = random_puzzle(seed)
        reply = session.generate(puzzle.prompt, seed=seed)
        right, sentence = verdict(puzzle, reply.text)
        assert right == ("".join(reply.text.split()) == puzzle.solution)
        assert sentence
        solved += right
    assert solved >= 9


def test_it_answers_with_a_system_prompt_and_over_two_turns(session: Session) -> None:
    first = session.generate("Reverse the word: CAT", seed=1, system="Be brief.")
    assert first.text
    assert first.finish_reason == "stop"


def test_a_seed_repeats_and_another_differs_in_its_noise(session: Session) -> None:
    again = [session.generate("Hello!", seed=5).tokens for _ in range(2)]
    assert again[0] == again[1]


def transformers_scores(count: dict[str, int]) -> dict[str, float]:
    """Share of right answers of transformers' own `generate`, in left-padded batches."""
    from transformers import DiffusionGemmaForBlockDiffusion

    torch.manual_seed(0)
    model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()
    encoder, scores = Encoder(MODEL_FOLDER), {}
    tokenizer = canvaslm.load().tokenizer
    ends = model.generation_config.eos_token_id
    for name, items in count.items():
        examples = heldout_items(TASKS[name], items, seed=0)
        prompts = [encoder.prompt(example) for example in examples]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS).sequences[:, width:]
        right = 0
        for example, row in zip(examples, out.tolist(), strict=True):
            stop = next((i for i, token in enumerate(row) if token in ends), len(row))
            right += TASKS[name].check(example, tokenizer.decode(row[:stop]))
        scores[name] = right / items
    return scores


@pytest.mark.slow
def test_transformers_scores_the_same(session: Session) -> None:
    """The same weights, the same items, other random numbers: within 3 points over all items."""
    pytest.importorskip("transformers")
    theirs = transformers_scores(COMPARED)
    ours = {}
    for name, items in COMPARED.items():
        options = EvalOptions(count=items, tasks=(name,), one_shot=False)
        (score,) = [s for s in evaluate(SessionAnswerer(session), options) if s.mode == REFINED]
        ours[name] = score.share
    total = sum(COMPARED.values())
    means = [sum(scores[n] * COMPARED[n] for n in COMPARED) / total for scores in (ours, theirs)]
    assert abs(means[0] - means[1]) <= 0.03, (ours, theirs)


def test_readme_asks_what_the_model_can_answer(session: Session) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    answers = {
        "Reverse: CANVAS": "SAVNAC",
        "What is the capital of France?": "Paris",
        "Sort: 42 17 88": "17 42 88",
    }
    for prompt, answer in answers.items():
        assert f'"{prompt}"' in readme
        assert answer in session.generate(prompt, seed=7).text
