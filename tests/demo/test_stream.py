"""The training stream: random access, shares, lengths, and prompts that are what the chat template makes."""

from __future__ import annotations

from collections import Counter

import pytest

from canvaslm.demo.stream import WEIGHTS, DemoStream, Encoder, encode_example, example_at
from canvaslm.demo.tasks import TASKS, held_out

ENCODER = Encoder()


def test_random_access_repeats_an_example() -> None:
    forwards = [example_at(1, i) for i in range(100)]
    assert [example_at(1, i) for i in reversed(range(100))] == forwards[::-1]
    assert forwards != [example_at(2, i) for i in range(100)]


def test_shares_follow_the_weights() -> None:
    counts = Counter(example_at(0, i).task for i in range(8000))
    total = sum(WEIGHTS.values())
    for name, weight in WEIGHTS.items():
        assert counts[name] / 8000 == pytest.approx(weight / total, abs=0.02), name
    assert set(WEIGHTS) == set(TASKS)


def test_weights_choose_the_tasks() -> None:
    assert {example_at(0, i, {"sort": 1.0, "json": 3.0}).task for i in range(50)} == {"sort", "json"}


def test_lengths_fit_the_model() -> None:
    for index in range(6000):
        example = example_at(4, index)
        prompt, response = encode_example(example, ENCODER)
        assert len(prompt) <= 96, example
        if example.task == "long":
            assert 64 < len(response) <= 128, example
        else:
            assert len(response) <= 64, example


def test_nothing_held_out_is_streamed() -> None:
    for index in range(3000):
        example = example_at(6, index)
        task = TASKS[example.task]
        if task.evaluated and example.task != "two_turns":
            assert not held_out(example.key, task.one_in)


def test_prompt_and_response_markup() -> None:
    example = next(
        e for e in (example_at(0, i) for i in range(9999)) if e.thought and e.messages[0]["role"] == "system"
    )
    prompt, response = encode_example(example, ENCODER)
    text = ENCODER.tokenizer.decode(prompt, skip_special_tokens=False)
    system, user = (message["content"] for message in example.messages)
    assert (
        text == f"<bos><|turn>system\n<|think|>\n{system}<turn|>\n<|turn>user\n{user}<turn|>\n<|turn>model\n"
    )
    answer = ENCODER.tokenizer.decode(response, skip_special_tokens=False)
    assert answer == f"<|channel>thought\n{example.thought}\n<channel|>{example.answer}<turn|>"


def test_source_of_the_trainer_gives_pairs() -> None:
    source = DemoStream(weights={"sudoku": 1.0})
    assert source.example(3, 9) == encode_example(example_at(3, 9, {"sudoku": 1.0}), ENCODER)
