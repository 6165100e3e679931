"""4x4 Sudoku: 288 grids, puzzles with one solution, and the puzzle that is shown."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from canvaslm.demo.puzzle import (
    check_solution,
    pretty,
    puzzle_in,
    random_puzzle,
    read_grid,
    verdict,
)
from canvaslm.demo.tasks import TASKS, held_out
from canvaslm.demo.tasks.sudoku import (
    GRIDS,
    HOLE,
    dig,
    is_valid,
    lines,
    solutions,
)


def brute_force(puzzle: str) -> int:
    """Number of solutions, by trying every filling of at most 6 holes."""
    holes = [i for i, cell in enumerate(puzzle) if cell == HOLE]
    count = 0
    for digits in product("1234", repeat=len(holes)):
        cells = list(puzzle)
        for hole, digit in zip(holes, digits, strict=True):
            cells[hole] = digit
        count += is_valid("".join(cells))
    return count


def test_there_are_288_grids() -> None:
    assert len(GRIDS) == len(set(GRIDS)) == 288
    assert all(is_valid(grid) for grid in GRIDS)


def test_validity_needs_rows_columns_and_boxes() -> None:
    assert is_valid("1234341221434321")
    assert not is_valid("1134341221434321")  # row
    assert not is_valid("1234" + "1234")  # column
    assert not is_valid("1234" + "2143")  # box


def test_solutions_agree_with_brute_force() -> None:
    rng = Random(1)
    for _ in range(20):
        grid = rng.choice(GRIDS)
        holes = set(rng.sample(range(16), 6))
        puzzle = "".join(HOLE if i in holes else cell for i, cell in enumerate(grid))
        assert len(solutions(puzzle)) == brute_force(puzzle)
    assert len(solutions(HOLE * 16)) == 288


def test_every_puzzle_has_one_solution_and_6_to_12_holes() -> None:
    rng, task = Random(2), TASKS["sudoku"]
    seen = set()
    for _ in range(500):
        example = task.sample(rng)
        puzzle = puzzle_in(example.messages[0]["content"])
        assert puzzle is not None
        assert [lines(s) for s in solutions(puzzle)] == [example.answer]
        seen.add(puzzle.count(HOLE))
    assert seen == set(range(6, 13))


def test_digging_keeps_the_other_cells() -> None:
    grid = GRIDS[100]
    puzzle = dig(grid, 8, Random(0))
    assert puzzle.count(HOLE) == 8
    assert all(cell in (HOLE, grid[i]) for i, cell in enumerate(puzzle))


def test_shown_puzzle_is_seeded_and_held_out() -> None:
    assert random_puzzle(7) == random_puzzle(7)
    assert len({random_puzzle(seed).grid for seed in range(20)}) > 15
    for seed in range(20):
        puzzle = random_puzzle(seed)
        assert held_out(f"sudoku/{puzzle.grid}", 20)
        assert solutions(puzzle.grid) == [puzzle.solution]


def test_verdicts() -> None:
    puzzle = random_puzzle(7)
    good = lines(puzzle.solution)
    hole, given = puzzle.grid.index(HOLE), next(i for i, c in enumerate(puzzle.grid) if c != HOLE)

    def change(cell: int) -> str:
        digit = "1" if puzzle.solution[cell] != "1" else "2"
        return puzzle.solution[:cell] + digit + puzzle.solution[cell + 1 :]

    assert verdict(puzzle, good)[0]
    assert check_solution(puzzle.prompt, good)
    ok, why = verdict(puzzle, change(hole))
    assert not ok
    assert "1 of 9 holes" in why
    ok, why = verdict(puzzle, change(given))
    assert not ok
    assert "given digit" in why
    for text in ("", "hello", good[:-1], lines(puzzle.grid), good + "\n1"):
        assert not verdict(puzzle, text)[0]
        assert not check_solution(puzzle.prompt, text)
    assert not check_solution("What is the capital of France?", good)


@pytest.mark.parametrize(("text", "cells"), [("12 34\n3412\n2143\n4321 ", "1234341221434321"), ("123", None)])
def test_read_grid(text: str, cells: str | None) -> None:
    assert read_grid(text) == cells


def test_pretty_is_a_box_of_equal_lines() -> None:
    drawn = pretty("1234341221434321").splitlines()
    assert {len(line) for line in drawn} == {13}
    assert "".join(c for c in "".join(drawn) if c.isdigit()) == "1234341221434321"
