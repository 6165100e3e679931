#!/usr/bin/env python
"""How often one hole of a right answer is filled as it was: a Markdown table, a line a task and kind of cut.

    python benchmarks/infill.py                                   # the demo model
    python benchmarks/infill.py -n 200 --tasks json --cuts char --prompts asked
    python benchmarks/infill.py --deepest 0                       # given tokens stay as they are
    python benchmarks/infill.py --candidates 1                    # the best length of the one step alone

Cuts are two characters of the answer drawn at random (`char`), or two edges of what no merge of the demo
tokenizer crosses (`piece`). The prompt is the task's own (`asked`) or the text before the hole (`bare`).
"""

from __future__ import annotations

import argparse
from random import Random

import canvaslm
from canvaslm.demo.holes import edges
from canvaslm.demo.tasks import TASKS
from canvaslm.evals.score import wilson
from canvaslm.session import filling, seams


def measure(
    session: canvaslm.Session, task: str, cut: str, prompt: str, args: argparse.Namespace
) -> tuple[int, float]:
    """Right ones, and mean steps of the canvases that were kept."""
    rng = Random(f"{args.seed}/{task}/{cut}")
    right = steps = 0
    for index in range(args.n):
        example = TASKS[task].sample(rng, "heldout")
        answer = example.answer
        places = edges(answer) if cut == "piece" else range(len(answer) + 1)
        start, end = sorted(rng.sample(list(places), 2))
        asked = example.messages[-1]["content"] if prompt == "asked" else None
        filled = session.infill(answer[:start], answer[end:], instruction=asked, seed=args.seed + index)
        right += filled.text == answer
        steps += sum(canvas.steps for canvas in filled.canvases)
    return right, steps / args.n


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a folder, a file or a hub id; without it the demo model")
    parser.add_argument("-n", type=int, default=100, help="items of each line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", default="functions,json,sort")
    parser.add_argument("--cuts", default="piece,char")
    parser.add_argument("--prompts", default="asked,bare")
    parser.add_argument("--deepest", type=int, default=seams.DEEPEST)
    parser.add_argument("--candidates", type=int, default=filling.CANDIDATES)
    args = parser.parse_args()
    seams.DEEPEST, filling.CANDIDATES = args.deepest, args.candidates
    print(f"n = {args.n}, seed {args.seed}, deepest {args.deepest}, candidates {args.candidates}\n")
    print("| task | cut | prompt | exact (95 %) | steps |\n|---|---|---|---|---|", flush=True)
    with canvaslm.load(args.model) as session:
        for task in args.tasks.split(","):
            for cut in args.cuts.split(","):
                for prompt in args.prompts.split(","):
                    right, steps = measure(session, task, cut, prompt, args)
                    low, high = wilson(right, args.n)
                    print(
                        f"| {task} | {cut} | {prompt} | {right / args.n:.2f} ({low:.2f} to {high:.2f}) "
                        f"| {steps:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
