"""The tasks with holes: what is hidden is settled by what stands around it, and is a run of whole tokens."""

from __future__ import annotations

import re
from collections import Counter

from canvaslm.demo.filling import FILLING, SPANS
from canvaslm.demo.stream import Encoder
from canvaslm.demo.tasks import TASKS, Example, held_out
from canvaslm.demo.tasks.sudoku import HOLE, solutions
from canvaslm.evals.demo import heldout_items

ENCODER = Encoder()


def items(name: str, count: int = 400) -> list[Example]:
    return heldout_items(FILLING[name], count, 5)


def test_both_tasks_have_the_same_items_with_other_prompts() -> None:
    asked, bare = items("infill"), items("infill_bare")
    assert [(a.answer, a.holes, a.key) for a in asked] == [(b.answer, b.holes, b.key) for b in bare]
    for one, other in zip(asked, bare, strict=True):
        assert one.messages != other.messages
        assert other.messages[0]["content"] == other.answer[: other.holes[0][0]].strip()
    counts = Counter(item.key.split("/")[0] for item in asked)
    assert counts.keys() == SPANS.keys()
    assert min(counts.values()) > len(asked) / 10


def test_items_come_from_the_held_out_split_of_their_task() -> None:
    for item in items("infill"):
        key = item.key.rsplit("/", 1)[0]
        assert held_out(key, TASKS[key.split("/")[0]].one_in)


def test_holes_are_whole_tokens_inside_the_answer() -> None:
    for item in items("infill"):
        ((start, end),) = item.holes
        assert 0 <= start < end <= len(item.answer)
        assert item.closed
        pieces = [token for text, _ in item.pieces() for token in ENCODER.text(text)]
        assert pieces == ENCODER.text(item.answer)


def test_what_is_hidden_is_settled_by_the_rest() -> None:
    for item in items("infill"):
        ((start, end),) = item.holes
        hidden, kind = item.answer[start:end], item.key.split("/")[0]
        around = item.answer[:start] + " " + item.answer[end:]
        if kind == "functions":
            assert re.search(rf"\b{hidden.strip()}\b", around)
        elif kind == "sudoku":
            cells = [HOLE if start <= i < end else c for i, c in enumerate(item.answer) if c != "\n"]
            assert solutions("".join(cells)) == [item.answer.replace("\n", "")]
        elif kind == "json":
            assert item.answer[end:].startswith('": "')
