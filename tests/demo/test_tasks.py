"""Generators: the same seed gives the same items, splits share none, answers are right
by an independent check."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random

import pytest

from canvaslm.demo.tasks import TASKS, held_out
from canvaslm.demo.tasks.base import Example, Split, Task
from canvaslm.demo.tasks.blanks import BLANK
from canvaslm.demo.tasks.capitals import CAPITALS

EVALUATED = [task for task in TASKS.values() if task.evaluated]


def draws(name: str, count: int, split: Split = "train") -> list[Example]:
    rng = Random(f"test/{name}/{split}")
    return [TASKS[name].sample(rng, split) for _ in range(count)]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_same_seed_same_items(task: Task) -> None:
    first = [task.sample(Random(f"x/{i}")) for i in range(50)]
    assert first == [task.sample(Random(f"x/{i}")) for i in range(50)]
    assert len({example.key for example in first}) > 10


@pytest.mark.parametrize("task", EVALUATED, ids=lambda task: task.name)
def test_no_held_out_item_is_trained(task: Task) -> None:
    rng = Random(3)
    held = {task.sample(rng, "heldout").key for _ in range(300)}
    trained = {task.sample(rng, "train").key for _ in range(3000)}
    assert not held & trained


def test_no_held_out_item_stands_in_a_history() -> None:
    parts = [part for example in draws("two_turns", 2000) for part in example.key.split("//")]
    items = [part for part in parts if part.split("/")[0] in ("capitals", "reverse", "sort", "blanks")]
    assert len(items) > 1000
    assert not [item for item in items if held_out(item, TASKS[item.split("/")[0]].one_in)]


def test_held_out_share_is_one_in_n() -> None:
    share = sum(held_out(f"item {i}", 20) for i in range(20000)) / 20000
    assert 0.04 < share < 0.06


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_own_answer_is_right_and_another_is_wrong(task: Task) -> None:
    example = task.sample(Random(5))
    assert task.check(example, f" {example.answer}\n")
    assert not task.check(example, example.answer + "1")
    assert not task.check(example, "")


def test_reversal() -> None:
    for example in draws("reverse", 200):
        word = example.key.split("/")[1]
        assert word in example.messages[0]["content"]
        assert example.answer == word[::-1]
        assert 3 <= len(word) <= 8


def test_json_has_the_pairs_of_the_prompt() -> None:
    for example in draws("json", 200):
        given = dict(
            pair.split("=") for pair in example.messages[0]["content"].replace(",", "").split() if "=" in pair
        )
        written = {
            k: v if isinstance(v, str) else json.dumps(v) for k, v in json.loads(example.answer).items()
        }
        assert written == given


def test_functions_run_and_have_the_asked_name() -> None:
    known = {"len": len, "max": max, "min": min, "abs": abs, "sorted": sorted}
    for example in draws("functions", 300):
        scope = dict(known)
        exec(example.answer, scope)
        name = example.answer[4 : example.answer.index("(")]
        assert callable(scope[name])
        assert f" {name}" in example.messages[0]["content"]


def test_sorting_is_sorted_and_a_permutation() -> None:
    for example in draws("sort", 200):
        numbers = [int(n) for n in example.messages[0]["content"].split(":")[1].split()]
        assert [int(n) for n in example.answer.split()] == sorted(numbers)
        assert len(set(numbers)) == len(numbers)


def test_blanks_answer_fills_the_gap_and_nothing_else() -> None:
    for example in draws("blanks", 300):
        before, after = example.messages[0]["content"].split(BLANK)
        start = before.rsplit(". ", 1)[-1].split(": ")[-1].split("? ")[-1]
        assert example.answer.startswith(start)
        assert example.answer.endswith(after.split(". ")[0])
        assert BLANK not in example.answer


def test_capitals_name_a_pair_of_the_list() -> None:
    for example in draws("capitals", 200):
        text = example.messages[0]["content"] + example.answer
        assert any(country in text and capital in text for country, capital in CAPITALS.items())


def test_every_country_is_trained_and_held_out() -> None:
    for split in ("train", "heldout"):
        prompts = " ".join(e.messages[0]["content"] + e.answer for e in draws("capitals", 3000, split))
        assert all(country in prompts for country in CAPITALS)


def test_counting_is_a_run_of_numbers() -> None:
    for example in draws("long", 300):
        if not example.answer.replace(" ", "").isdigit():
            continue
        numbers = [int(n) for n in example.answer.split()]
        assert {b - a for a, b in pairwise(numbers)} in ({1}, {-1}, {2}, {-2})
        assert str(numbers[0]) in example.messages[0]["content"]


def test_follow_ups_refer_to_the_first_turn() -> None:
    for example in draws("two_turns", 500):
        if example.messages[2]["content"] in ("And back?", "Now reverse it back.", "Reverse that."):
            assert example.answer == example.messages[1]["content"][::-1]
            assert example.answer in example.messages[0]["content"]
