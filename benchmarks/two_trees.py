#!/usr/bin/env python
"""What a change costs in time: two source trees take the same denoise steps in turn. A Markdown table.

    git worktree add /tmp/before v0.1
    python benchmarks/two_trees.py /tmp/before/src src -m model.gguf
    python benchmarks/two_trees.py /tmp/before/src src -m model.gguf --rows 4 --context 512 --pairs 40

Each tree loads the model in a process of its own; one step of the first is followed by one of the second, so
that whatever else the machine does meets both. The ratio is the first tree's time over the second's, the
median over pairs with the middle half of the pairs in brackets: above 1 the second is the faster. Prompts,
seeds and settings are those of `canvaslm bench --step`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

WARM = 2  # steps before those that count: the first has no self-conditioning, the second warms caches


class Tree:
    """A process that takes a step whenever it is told to, with the code of one source tree."""

    def __init__(self, source: Path, options: argparse.Namespace, rows: int) -> None:
        words = ["-m", options.model, "--context", str(options.context), "--pairs", str(options.pairs)]
        self._process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--take-steps",
                *words,
                "--rows",
                str(rows),
                "--threads",
                str(options.threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(source.resolve())},
        )
        self._read()

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return float(self._read())

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a tree's process ended with code {self._process.wait()}")
        return line


def take_steps(options: argparse.Namespace) -> None:
    """The process of one tree: says "ready", then a step's seconds for every line it reads."""
    import canvaslm
    from canvaslm.bench.steps import Stepper

    options_of_load: dict[str, Any] = {"threads": options.threads} if options.threads else {}
    session = canvaslm.load(options.model, **options_of_load)
    (rows,) = options.rows
    stepper = Stepper(session.engine, options.context, rows=rows, limit=options.pairs + WARM)
    threads = getattr(session, "threads", None)  # older trees set them when they load
    with threads.in_use() if threads is not None else nullcontext():
        stepper.start()
        print("ready", flush=True)
        for _ in sys.stdin:
            begin = time.perf_counter()
            stepper.step()
            print(time.perf_counter() - begin, flush=True)


def measured(options: argparse.Namespace, rows: int) -> str:
    """One line of the table."""
    trees = [Tree(source, options, rows) for source in options.trees]
    for _ in range(WARM):
        for tree in trees:
            tree.step()
    pairs = []
    for number in range(options.pairs):
        order = trees if number % 2 == 0 else trees[::-1]  # neither always follows the other
        seconds = {id(tree): tree.step() for tree in order}
        pairs.append([seconds[id(tree)] for tree in trees])
    for tree in trees:
        tree.end()
    return line(rows, pairs)


def line(rows: int, pairs: Sequence[Sequence[float]]) -> str:
    """`pairs`: seconds of the first and of the second tree."""
    first, second = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"| {rows} | {first:.1f} | {second:.1f} | {middle:.3f} ({low:.3f}-{high:.3f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="*", type=Path, metavar="SRC", help="two folders that hold `canvaslm`")
    parser.add_argument("-m", "--model", default="demo", help="what canvaslm.load takes (default: demo)")
    parser.add_argument("--context", type=int, default=128, help="tokens before the canvas (default: 128)")
    parser.add_argument("--rows", default="1", help="canvases in a step, several with commas (default: 1)")
    parser.add_argument("--pairs", type=int, default=20, help="steps of each tree that count (default: 20)")
    parser.add_argument("--threads", type=int, default=0, help="0: as each tree chooses (default)")
    parser.add_argument("--take-steps", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = [int(rows) for rows in options.rows.split(",")]
    if options.take_steps:
        take_steps(options)
        return
    if len(options.trees) != 2:
        parser.error("name two source trees")
    print(f"| rows | first, ms | second, ms | ratio, median of {options.pairs} pairs (middle half) |")
    print("|---|---|---|---|")
    for rows in options.rows:
        print(measured(options, rows), flush=True)


if __name__ == "__main__":
    main()
