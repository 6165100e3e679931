"""List tasks: checkers against answers made by hand, and items."""

from __future__ import annotations

import pytest

from canvaslm.demo.tasks import Example
from canvaslm.demo.tasks.base import ask
from canvaslm.evals.lists import LONGEST, OPERATIONS, SHORTEST, ListTask, read_names, tasks

A, B, C, D = "Ada", "Ben", "Cleo", "Dan"


def item(operation: str, place: int = 1) -> Example:
    """Of the list Cleo, Ada, Ben and the new name Dan."""
    return ask(f"lists:{operation}", "?", "", f"{C}/{A}/{B}/{D}/{place}")


@pytest.mark.parametrize(
    ("operation", "right", "wrong"),
    [
        ("copy", ["Cleo, Ada, Ben"], ["Cleo, Ada", "Ada, Cleo, Ben", "Cleo, Ada, Ben, Dan", ""]),
        ("reverse", ["Ben, Ada, Cleo"], ["Cleo, Ada, Ben"]),
        ("sort", ["Ada, Ben, Cleo"], ["Ben, Ada, Cleo"]),
        (
            "shuffle",
            ["Ada, Ben, Cleo", "Ben, Cleo, Ada"],
            ["Cleo, Ben, Ada", "Ada, Ben", "Ada, Ben, Ada", "Ada, Ben, Dan", "Cleo, Ada, Ben"],
        ),
        ("replace-at", ["Cleo, Dan, Ben"], ["Dan, Ada, Ben", "Cleo, Ada, Ben"]),
        (
            "replace-any",
            ["Dan, Ada, Ben", "Cleo, Dan, Ben", "Cleo, Ada, Dan"],
            ["Cleo, Ada, Ben", "Dan, Dan, Ben", "Cleo, Ada, Ben, Dan", "Dan, Cleo, Ada, Ben"],
        ),
        ("insert-at", ["Cleo, Dan, Ada, Ben"], ["Dan, Cleo, Ada, Ben"]),
        (
            "insert-any",
            ["Dan, Cleo, Ada, Ben", "Cleo, Ada, Dan, Ben", "Cleo, Ada, Ben, Dan"],
            ["Cleo, Ada, Ben", "Dan, Cleo, Ada, Ben, Dan", "Dan, Ada, Cleo, Ben"],
        ),
        ("remove-at", ["Cleo, Ben"], ["Ada, Ben", "Cleo, Ada, Ben"]),
        (
            "remove-any",
            ["Ada, Ben", "Cleo, Ben", "Cleo, Ada"],
            ["Cleo, Ada, Ben", "Ben", "Ben, Cleo", ""],
        ),
    ],
)
def test_hand_made_answers(operation: str, right: list[str], wrong: list[str]) -> None:
    task = ListTask(operation)
    for text in right:
        assert task.check(item(operation), text), text
    for text in wrong:
        assert not task.check(item(operation), text), text


@pytest.mark.parametrize(
    "text",
    ["Ada, Ben", " Ada,Ben.", '["Ada", "Ben"]', "['Ada', 'Ben']", "Ada\nBen\n", "(Ada, Ben)", "Ada, Ben,"],
)
def test_names_are_read_whatever_stands_around_them(text: str) -> None:
    assert read_names(text) == ["Ada", "Ben"]


def test_other_words_are_no_names() -> None:
    assert read_names("Sure! Ada, Ben") == ["Sure! Ada", "Ben"]
    assert read_names("") == []


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_items_are_distinct_repeatable_and_answered_rightly(name: str) -> None:
    task = tasks()[name]
    items = task.items(50, 0)
    assert task.name == f"lists:{name}"
    assert len({each.key for each in items}) == 50
    assert items == task.items(50, 0)
    assert items != task.items(50, 1)
    for each in items:
        assert task.check(each, each.answer)
        question, _, names = each.messages[0]["content"].partition("\n\n")
        assert SHORTEST <= len(names.split(", ")) <= LONGEST
        assert "{" not in question
        if name not in ("copy", "sort"):
            assert not task.check(each, names), "doing nothing is wrong"
