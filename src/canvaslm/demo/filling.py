"""The eval's tasks with holes: answers given but for one part, which what stands around it settles.

`infill` asks for the answer as its task does; `infill_bare` has the same items with only the text before the
hole as the prompt. Both are scored by the whole answer, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

from .holes import edges, without_prompt
from .tasks import TASKS, Example, Split, Task
from .tasks.capitals import CAPITALS
from .tasks.json_pairs import WORD_KEYS
from .tasks.sudoku import HOLE, solutions

Span = tuple[int, int]
_CITIES = frozenset(CAPITALS.values())


def argument(example: Example, rng: Random) -> Span | None:
    """One place where a function names an argument: the signature and the body tell it of each other."""
    head = example.answer.partition("\n")[0]
    names = head[head.index("(") + 1 : -2].split(", ")
    found = [m.span() for m in re.finditer(rf"\b(?:{'|'.join(names)})\b", example.answer)]
    start, end = rng.choice([span for span in found if span[0] >= head.index("(")])
    return start - (example.answer[start - 1] == " "), end  # a word's token has the space before it


def key(example: Example, rng: Random) -> Span | None:
    """The key of a value that says what it is the value of: of a name, a city, a color."""
    found = [m.span(1) for m in re.finditer(r'"(\w+)": "', example.answer) if m[1] in WORD_KEYS]
    return rng.choice(found) if found else None


def capital(example: Example, rng: Random) -> Span | None:
    """The capital in a sentence that names its country."""
    found = [city for city in _CITIES if city in example.answer and " capital of " in example.answer]
    if not found:
        return None
    city = max(found, key=len)
    return example.answer.index(city), example.answer.index(city) + len(city)


def stretch(example: Example, rng: Random) -> Span | None:
    """A few pieces in the middle of a list that goes on by a rule."""
    places = edges(example.answer)
    start = rng.randrange(len(places) // 3, len(places) * 2 // 3)
    return places[start], places[start + rng.randint(2, 8)]


def cells(example: Example, rng: Random) -> Span | None:
    """Three to six characters of a full grid that can be filled in one way alone."""
    start, length = rng.randrange(4, 13), rng.randint(3, 6)
    end = start + length
    hidden = "".join(HOLE if start <= i < end else c for i, c in enumerate(example.answer) if c != "\n")
    return (start, end) if len(solutions(hidden)) == 1 else None


SPANS: Mapping[str, Callable[[Example, Random], Span | None]] = {
    "functions": argument,
    "json": key,
    "capitals": capital,
    "long": stretch,
    "sudoku": cells,
}


class Filling(Task):
    """An item of another task with one hole. Items are held out where their task holds them out."""

    name = "infill"

    def draw(self, rng: Random) -> Example:
        """Any item, of the held-out split as well as not."""
        return self.sample(rng, rng.choice(("train", "heldout")))

    def sample(self, rng: Random, split: Split = "train") -> Example:
        while True:
            part = rng.choice(tuple(SPANS))
            example = TASKS[part].sample(rng, split)
            span = SPANS[part](example, rng)
            if span is not None:
                return self._made(replace(example, holes=(span,), closed=True), span)

    def _made(self, example: Example, span: Span) -> Example:
        return replace(example, task=self.name, key=f"{example.key}/{span}")


class BareFilling(Filling):
    """The same without the question."""

    name = "infill_bare"

    def _made(self, example: Example, span: Span) -> Example:
        return super()._made(without_prompt(example), span)


FILLING: dict[str, Task] = {task.name: task for task in (Filling(), BareFilling())}

__all__ = ["FILLING", "SPANS", "BareFilling", "Filling", "argument", "capital", "cells", "key", "stretch"]
