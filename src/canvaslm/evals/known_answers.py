"""Questions for decisions whose answers are known, from the demo's tasks.

A question is a held-out item of a task, its right answer and three wrong ones, in which two letters, or two
numbers, have changed places.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from ..demo.tasks import TASKS
from .demo import heldout_items

TRIES = 200


def known_answers(task: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Lines of one task, as `decisions.labelled` reads them; items without three wrong ones are left out."""
    rng = Random(f"decisions/{task}/{seed}")
    for item in heldout_items(TASKS[task], count, seed):
        wrong = distractors(rng, item.answer, " " if task == "sort" else "")
        if len(wrong) < 3 or len(item.messages) > 1:
            continue
        shown = [item.answer, *wrong]
        rng.shuffle(shown)
        choices = [{"value": value} for value in shown]
        question = {"type": "choice", "instructions": item.messages[0]["content"], "choices": choices}
        yield {"state": "", "question": question, "answer": item.answer}


def distractors(rng: Random, answer: str, between: str) -> list[str]:
    """Up to three other orders of an answer's parts, two of which have changed places."""
    found: dict[str, None] = {}
    for _ in range(TRIES):
        parts = answer.split(between) if between else list(answer)
        i, j = rng.sample(range(len(parts)), 2)
        parts[i], parts[j] = parts[j], parts[i]
        found[between.join(parts)] = None
        found.pop(answer, None)
        if len(found) == 3:
            break
    return list(found)


__all__ = ["TRIES", "distractors", "known_answers"]
