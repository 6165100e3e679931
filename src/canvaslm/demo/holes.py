"""Holes in an answer: what the demo model learns filling by, and is measured on.

The text around a hole is given on the canvas. Half of the examples still say in the prompt what is wanted; in
the others the prompt is the text before the first hole and nothing else, so that only what stands on both
sides tells what belongs between. A hole begins and ends where the tokenizer's merges do, so that the pieces
of an answer have the tokens that the whole has.
"""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

from .tasks import Example

# What no merge of the demo tokenizer crosses: a digit, a newline, a mark, a word with the space before it.
PIECES = re.compile(r"[0-9]|\n|[A-Z][a-z]*| ?[a-z]+| ?[^A-Za-z0-9\s]| ")
HOLES = (1, 1, 1, 1, 2, 2, 3)
TO_THE_END = 0.15  # share of examples whose last hole goes on to the end of the answer
BARE = 0.65  # of those that can lose their question: half of all examples with holes
MIN_PIECES = 4  # of an answer whose question is left out
# Where the text around a hole says something of what belongs in it.
TELLING = frozenset({"sudoku", "json", "capitals", "functions", "blanks", "sort", "long"})


def edges(text: str) -> list[int]:
    """Where pieces of `text` begin or end, 0 and its length included."""
    return [0, *(match.end() for match in PIECES.finditer(text))]


def with_holes(example: Example, rng: Random) -> Example:
    """The example with one to three holes in its answer; in half of the cases only the text before the first
    hole is the prompt, and at least half of the answer is given."""
    bare = rng.random() < BARE and example.task in TELLING and len(edges(example.answer)) > MIN_PIECES
    holes = draw_holes(example.answer, rng)
    while bare and 2 * sum(end - start for start, end in holes) > len(example.answer):
        holes = draw_holes(example.answer, rng)
    example = replace(example, holes=holes, closed=rng.random() < 0.5)
    return without_prompt(example) if bare else example


def draw_holes(text: str, rng: Random) -> tuple[tuple[int, int], ...]:
    """Some holes in `text`, at random edges."""
    places = edges(text)
    count = min(rng.choice(HOLES), len(places) // 2)
    chosen = sorted(rng.sample(places, 2 * count))
    if rng.random() < TO_THE_END:
        chosen[-1] = len(text)
    return tuple(zip(chosen[::2], chosen[1::2], strict=True))


def without_prompt(example: Example) -> Example:
    """The text before the first hole as the user's turn, in place of the question."""
    before = example.answer[: example.holes[0][0]].strip()
    return replace(example, messages=({"role": "user", "content": before},))


__all__ = ["HOLES", "PIECES", "TELLING", "TO_THE_END", "draw_holes", "edges", "with_holes", "without_prompt"]
