#!/usr/bin/env python
"""What a shorter canvas costs in right answers and saves in time: a Markdown table, a line a task and length.

    python benchmarks/canvas_lengths.py                               # the demo model, its own length first
    python benchmarks/canvas_lengths.py --lengths 16,24 -n 200 --tasks sudoku,sort --rows 1

The lengths answer the same held-out items with the same seeds, one length after the other for each task.
"speed" is tokens per second of wall time, as a ratio to the model's own length in the same run.
"""

from __future__ import annotations

import argparse
import time

import canvaslm
from canvaslm.demo.tasks import TASKS
from canvaslm.evals.run import EvalOptions, evaluate
from canvaslm.evals.score import Score, wilson
from canvaslm.evals.session_answers import SessionAnswerer


def measure(
    answerer: SessionAnswerer, task: str, length: int, args: argparse.Namespace
) -> tuple[Score, float]:
    """The score, and the tokens of a second."""
    options = EvalOptions(
        count=args.n, tasks=(task,), one_shot=False, seed=args.seed, sampling={"canvas_length": length}
    )
    begin = time.perf_counter()
    (score,) = evaluate(answerer, options)
    return score, score.tokens / (time.perf_counter() - begin)


def line(score: Score, length: int, speed: float) -> str:
    low, high = wilson(score.correct, score.count)
    canvases, steps = score.canvases / score.count, score.steps / score.count
    return (
        f"| {score.task} | {length} | {score.count} | {score.share:.3f} ({low:.2f} to {high:.2f}) "
        f"| {score.tokens / score.count:.1f} | {canvases:.2f} | {score.steps_per_canvas:.2f} | {steps:.2f} "
        f"| {speed:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-m", "--model", default=None)
    parser.add_argument("-n", type=int, default=100, help="items a task")
    parser.add_argument("--tasks", default=",".join(n for n, task in TASKS.items() if task.evaluated))
    parser.add_argument("--lengths", default="16,32")
    parser.add_argument("--rows", type=int, default=16, help="answers worked on at once")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    session = canvaslm.load(args.model)
    answerer, whole = SessionAnswerer(session, args.rows), session.engine.config.canvas_length
    measure(answerer, args.tasks.split(",")[0], whole, args)  # warm
    print("| task | places | n | exact (95 %) | tokens | canvases | steps each | steps in all | speed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task in args.tasks.split(","):
        score, base = measure(answerer, task, whole, args)
        print(line(score, whole, 1.0), flush=True)
        for length in map(int, args.lengths.split(",")):
            score, speed = measure(answerer, task, length, args)
            print(line(score, length, speed / base), flush=True)


if __name__ == "__main__":
    main()
