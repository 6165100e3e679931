"""4x4 Sudoku, 6 to 12 holes, one solution. Every cell is one token: a digit, or a dot for a hole.

There are only 288 full grids. For every (cell, digit) a 288-bit number says which grids have that digit
there, so the solutions of a puzzle are the AND of the numbers of its givens. Held out are puzzles (grid and
holes), not grids: the solution of a held-out puzzle has been seen in training as the solution of others.
"""

from __future__ import annotations

import re
from itertools import permutations
from random import Random
from typing import Any

from .base import Example, Task, ask

CELLS = 16
HOLE = "."
GRID = r"[1-4]{4}(\n[1-4]{4}){3}"  # a grid's form
PROMPTS = (
    "Solve this Sudoku:\n{}",
    "Sudoku:\n{}",
    "Fill the grid:\n{}",
    "Please solve the puzzle:\n{}",
)


def all_grids() -> tuple[str, ...]:
    """The 288 full 4x4 grids as strings of 16 digits, in lexical order."""
    rows = ["".join(row) for row in permutations("1234")]
    found: list[str] = []

    def extend(grid: str) -> None:
        if len(grid) == CELLS:
            found.append(grid)
            return
        for row in rows:
            if is_valid(grid + row):
                extend(grid + row)

    extend("")
    return tuple(found)


def is_valid(grid: str) -> bool:
    """Whether no digit repeats in a row, a column or a 2x2 box of `grid`, its first rows filled in."""
    units: set[tuple[str, int, str]] = set()
    for cell, digit in enumerate(grid):
        row, column = divmod(cell, 4)
        units |= {("row", row, digit), ("column", column, digit), ("box", row // 2 * 2 + column // 2, digit)}
    return len(units) == 3 * len(grid)


GRIDS = all_grids()
_EVERY = (1 << len(GRIDS)) - 1
_HAVING = {
    (cell, digit): sum(1 << i for i, grid in enumerate(GRIDS) if grid[cell] == digit)
    for cell in range(CELLS)
    for digit in "1234"
}


def solutions(puzzle: str) -> list[str]:
    """All solutions of `puzzle` (16 characters, holes are dots)."""
    left = _matching(puzzle)
    return [grid for i, grid in enumerate(GRIDS) if left >> i & 1]


def _matching(puzzle: str) -> int:
    left = _EVERY
    for cell, digit in enumerate(puzzle):
        if digit != HOLE:
            left &= _HAVING[cell, digit]
    return left


def dig(grid: str, holes: int, rng: Random) -> str:
    """Empties cells of a full `grid` in random order, at most `holes`, as long as
    the solution stays unique."""
    puzzle, left = list(grid), holes
    for cell in rng.sample(range(CELLS), CELLS):
        if not left:
            break
        puzzle[cell] = HOLE
        if _matching("".join(puzzle)).bit_count() == 1:
            left -= 1
        else:
            puzzle[cell] = grid[cell]
    return "".join(puzzle)


def lines(cells: str) -> str:
    """16 cells as four lines of four."""
    return "\n".join(cells[i : i + 4] for i in range(0, CELLS, 4))


class Sudoku(Task):
    """4x4 Sudoku. Where 12 holes cannot be dug the puzzle has a few less, never under 6."""

    name = "sudoku"
    thought = "Each row, column and box has 1, 2, 3, 4."
    structured = True

    def draw(self, rng: Random) -> Example:
        grid = rng.choice(GRIDS)
        puzzle = dig(grid, rng.randint(6, 12), rng)
        return ask(self.name, rng.choice(PROMPTS).format(lines(puzzle)), lines(grid), puzzle)

    def structure(self, example: Example) -> dict[str, Any]:
        return {"regex": GRID}

    def valid(self, example: Example, text: str) -> bool:
        return re.fullmatch(GRID, text) is not None


__all__ = ["CELLS", "GRIDS", "HOLE", "PROMPTS", "Sudoku", "dig", "is_valid", "lines", "solutions"]
