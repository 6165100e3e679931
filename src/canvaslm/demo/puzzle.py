"""A Sudoku to show: `canvaslm run` without a prompt solves it in public and checks it before saying so."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .tasks import held_out
from .tasks.sudoku import (
    CELLS,
    GRIDS,
    HOLE,
    PROMPTS,
    Sudoku,
    dig,
    lines,
    solutions,
)

HOLES = 9


@dataclass(frozen=True)
class Puzzle:
    """`prompt` is what the model reads. `grid` and `solution` are 16 characters, row by row; holes are
    dots."""

    prompt: str
    grid: str
    solution: str

    def pretty(self, cells: str | None = None) -> str:
        """The grid with its boxes drawn, for a terminal: `grid`, or `cells` (16 characters) in its place."""
        return pretty(self.grid if cells is None else cells)


def random_puzzle(seed: int | None = None, holes: int = HOLES) -> Puzzle:
    """A puzzle the demo model was not trained on, with one solution. The same seed
    gives the same; None any."""
    rng = Random(seed)
    while True:
        solution = rng.choice(GRIDS)
        grid = dig(solution, holes, rng)
        if held_out(f"{Sudoku.name}/{grid}", Sudoku.one_in):
            return Puzzle(PROMPTS[0].format(lines(grid)), grid, solution)


def read_grid(text: str) -> str | None:
    """The 16 cells of a grid written in `text`: digits 1 to 4 and dots, white space
    ignored. None if it is no grid."""
    cells = "".join(text.split())
    return cells if len(cells) == CELLS and set(cells) <= set("1234" + HOLE) else None


def puzzle_in(prompt: str) -> str | None:
    """The 16 cells of the puzzle in the last four lines of `prompt`; None if there is no such puzzle."""
    return read_grid("\n".join(prompt.strip().splitlines()[-4:]))


def check_solution(prompt: str, answer: str) -> bool:
    """Whether `answer` solves the puzzle in `prompt`: a full grid that obeys the
    rules and keeps the givens."""
    puzzle, grid = puzzle_in(prompt), read_grid(answer)
    return puzzle is not None and grid is not None and grid in solutions(puzzle)


def verdict(puzzle: Puzzle, text: str) -> tuple[bool, str]:
    """Whether `text` solves the puzzle, and a sentence that says so, or what is wrong."""
    cells = read_grid(text)
    if cells is None or HOLE in cells:
        return False, "Not solved: the answer is not a full grid of four rows of four."
    if cells == puzzle.solution:
        return True, "Solved: every row, column and box has 1, 2, 3 and 4."
    changed = [i for i in range(CELLS) if puzzle.grid[i] not in (HOLE, cells[i])]
    if changed:
        return False, f"Not solved: the given digit at {_place(changed[0])} was changed."
    wrong = sum(a != b for a, b in zip(cells, puzzle.solution, strict=True))
    return False, f"Not solved: {wrong} of {puzzle.grid.count(HOLE)} holes are wrong."


def _place(cell: int) -> str:
    return f"row {cell // 4 + 1}, column {cell % 4 + 1}"


def pretty(cells: str) -> str:
    """16 cells as a drawn grid of 7 lines, 13 characters wide."""
    rows = [cells[i : i + 4] for i in range(0, CELLS, 4)]
    drawn = [f"│ {row[0]} {row[1]} │ {row[2]} {row[3]} │" for row in rows]
    return "\n".join(
        ["┌─────┬─────┐", drawn[0], drawn[1], "├─────┼─────┤", drawn[2], drawn[3], "└─────┴─────┘"]
    )


__all__ = ["Puzzle", "check_solution", "pretty", "puzzle_in", "random_puzzle", "read_grid", "verdict"]
