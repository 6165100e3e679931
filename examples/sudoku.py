#!/usr/bin/env python
"""Sudokus with one solution each, as chats to fine-tune on: 9 x 9 for a large model, 4 x 4 for a small one.

    python examples/sudoku.py make data --train 5000                  # 9 x 9, 30 to 50 cells given
    canvaslm finetune -m org/name --data data/train.jsonl --valid 2% --out runs/sudoku \\
        --targets attention,mlp,experts --rank 8 --batch 8 --micro-batch 1 --dry-run
    python examples/sudoku.py check data --model org/name --adapter runs/sudoku/adapter -n 50

`--dry-run` says what memory and time the run takes on the machine at hand. With `--size 4` the same runs on
the demo model. `check` counts an answer as right when it is the grid, and tells how many cells are.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

PROMPT = "Solve this Sudoku. A dot is an empty cell.\n"
Grid = list[int]


def solved(size: int, rng: random.Random) -> Grid:
    """A full grid: a pattern whose digits, rows and columns are shuffled as the rules allow."""
    box = int(size**0.5)

    def order() -> list[int]:
        bands = rng.sample(range(box), box)
        return [band * box + row for band in bands for row in rng.sample(range(box), box)]

    digits, rows, columns = rng.sample(range(1, size + 1), size), order(), order()
    return [digits[(box * (r % box) + r // box + c) % size] for r in rows for c in columns]


def allowed(grid: Grid, at: int, size: int) -> list[int]:
    """What may stand in an empty cell."""
    box = int(size**0.5)
    row, column = divmod(at, size)
    top, left = row - row % box, column - column % box
    seen = {grid[row * size + i] for i in range(size)} | {grid[i * size + column] for i in range(size)}
    seen |= {grid[(top + i // box) * size + left + i % box] for i in range(size)}
    return [digit for digit in range(1, size + 1) if digit not in seen]


def solutions(grid: Grid, size: int, most: int = 2) -> int:
    """How many there are, counted up to `most`."""
    empty = [(allowed(grid, at, size), at) for at, digit in enumerate(grid) if not digit]
    if not empty:
        return 1
    digits, at = min(empty, key=lambda pair: len(pair[0]))
    found = 0
    for digit in digits:
        grid[at] = digit
        found += solutions(grid, size, most - found)
        if found >= most:
            break
    grid[at] = 0
    return found


def puzzle(size: int, rng: random.Random) -> tuple[Grid, Grid]:
    """(what is given, the one solution)."""
    whole = solved(size, rng)
    given, cells = list(whole), size * size
    wanted = rng.randint(round(0.37 * cells), round(0.62 * cells))
    for at in rng.sample(range(cells), cells):
        if sum(map(bool, given)) <= wanted:
            break
        kept, given[at] = given[at], 0
        if solutions(list(given), size) != 1:
            given[at] = kept
    return given, whole


def text(grid: Grid, size: int) -> str:
    rows = (grid[i : i + size] for i in range(0, len(grid), size))
    return "\n".join("".join(str(digit or ".") for digit in row) for row in rows)


def make(folder: Path, size: int, train: int, test: int) -> None:
    """Held-out grids come first, so that more training data change none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, seen = random.Random(f"sudoku/{size}"), set[str]()
    for name, count in (("test", test), ("train", train)):
        lines: list[str] = []
        while len(lines) < count:
            given, whole = (text(grid, size) for grid in puzzle(size, rng))
            if given in seen:
                continue
            seen.add(given)
            messages = [{"role": "user", "content": PROMPT + given}, {"role": "assistant", "content": whole}]
            lines.append(json.dumps({"messages": messages}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))


def check(folder: Path, model: str | None, adapter: Path, count: int) -> None:
    import canvaslm
    from canvaslm.evals.score import wilson

    lines = (folder / "test.jsonl").read_text().splitlines()[:count]
    pairs = [tuple(m["content"] for m in json.loads(line)["messages"]) for line in lines]
    with canvaslm.load(model, adapters={"sudoku": adapter}) as session:
        for name in (None, "sudoku"):
            options = {"adapter": name} if name else {}
            replies = session.generate_many([asked for asked, _ in pairs], seed=0, **options)
            answers = [(reply.text.strip(), whole) for reply, (_, whole) in zip(replies, pairs, strict=True)]
            right = sum(answer == whole for answer, whole in answers)
            cells = sum(a == b for answer, whole in answers for a, b in zip(answer, whole, strict=False))
            low, high = wilson(right, len(pairs))
            share = cells / sum(len(whole) for _, whole in answers)
            print(
                f"{name or 'base'}: {right} of {len(pairs)} right, {low:.3f} to {high:.3f}; cells {share:.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=("make", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, choices=(4, 9), default=9)
    parser.add_argument("--train", type=int, default=5000, help="puzzles to train on (5000)")
    parser.add_argument("--test", type=int, default=200, help="held-out puzzles (200)")
    parser.add_argument("--model", help="the base; without it the demo model")
    parser.add_argument("--adapter", type=Path, default=Path("runs/sudoku/adapter"))
    parser.add_argument("-n", type=int, default=200, help="how many to check (200)")
    given = parser.parse_args()
    if given.action == "make":
        make(given.folder, given.size, given.train, given.test)
    else:
        check(given.folder, given.model, given.adapter, given.n)


if __name__ == "__main__":
    main()
