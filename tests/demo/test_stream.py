"""The training stream: random access, shares, lengths, and prompts that are what the chat template makes."""

from __future__ import annotations

from collections import Counter

import pytest

from canvaslm.demo.holes import TELLING
from canvaslm.demo.stream import INFILL_SHARE, WEIGHTS, DemoStream, Encoder, encode_example, example_at
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
        assert len(prompt) <= 96 or example.holes, example
        assert len(prompt) <= 136, example
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
    source = DemoStream(weights={"sudoku": 1.0}, infill=0.5)
    for index in range(20):
        example = example_at(3, index, {"sudoku": 1.0}, infill=0.5)
        assert source.example(3, index) == (*encode_example(example, ENCODER), ENCODER.given(example))


def test_holes_are_in_their_share_of_examples_and_half_of_them_have_no_question() -> None:
    examples = [example_at(9, i) for i in range(20_000)]
    holed = [e for e in examples if e.holes]
    assert 0.1 <= INFILL_SHARE <= 0.15
    assert len(holed) / len(examples) == pytest.approx(INFILL_SHARE, abs=0.01)
    bare = [e for e in holed if e.messages[-1]["content"] == e.answer[: e.holes[0][0]].strip()]
    assert len(bare) / len(holed) == pytest.approx(0.5, abs=0.04)
    assert {e.task for e in bare} == TELLING
    for example in bare:
        assert 2 * sum(end - start for start, end in example.holes) <= len(example.answer)
    assert 0.4 < sum(e.closed for e in holed) / len(holed) < 0.6
    assert Counter(len(e.holes) for e in holed).keys() == {1, 2, 3}


def test_an_example_without_holes_does_not_depend_on_their_share() -> None:
    for index in range(200):
        never = example_at(2, index, infill=0.0)
        example = example_at(2, index)
        assert not never.holes
        assert example.holes or example == never
        assert example_at(2, index, infill=1.0).answer == never.answer


def test_the_canvas_of_an_example_with_holes_is_that_of_its_answer() -> None:
    """Prefix, hole, suffix, end of the turn: the tokens of the whole answer, whatever is given of it."""
    for index in range(1500):
        example = example_at(8, index, infill=1.0)
        response, given = ENCODER.response(example), ENCODER.given(example)
        assert response == [*ENCODER.text(example.answer), ENCODER.end]
        assert len(given) == len(response)
        assert given[-1] == example.closed
        assert not all(given[:-1])
        shown, at = "", 0
        for text, known in example.pieces():
            size = len(ENCODER.text(text))
            assert given[at : at + size] == [known] * size
            shown, at = shown + text, at + size
        assert shown == example.answer
        assert example.holes == tuple(sorted(example.holes))
    assert ENCODER.given(example_at(8, 0, infill=0.0)) == []
