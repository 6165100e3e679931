"""Questions whose answers are known, from the demo's tasks: what `canvaslm calibrate` is tried on.

    python benchmarks/decisions.py -n 300 > labelled.jsonl
    canvaslm calibrate labelled.jsonl

The demo model was never taught to answer by letters: with `--labels letters` it guesses.
"""

from __future__ import annotations

import argparse
import json

from canvaslm.evals.known_answers import known_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=200, help="items of each task")
    parser.add_argument("--tasks", default="reverse,sort")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for task in asked.tasks.split(","):
        for line in known_answers(task, asked.n, asked.seed):
            print(json.dumps(line))


if __name__ == "__main__":
    main()
