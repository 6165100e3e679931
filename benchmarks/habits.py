#!/usr/bin/env python
"""Counts how many passes a model's answers take by preset, for `canvaslm bench --answer`.

    python benchmarks/habits.py > src/canvaslm/bench/habits.json        # the demo model's tasks
    python benchmarks/habits.py -n 100 --seed 7 -m folder --out habits.json

Each preset answers the same held-out items of the demo's tasks without holes. Answers are put together by the
share of a canvas that they fill.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import canvaslm
from canvaslm.bench.habits import SHARES, Habit, as_document
from canvaslm.demo.tasks import TASKS
from canvaslm.diffusion.params import PRESETS
from canvaslm.evals.demo import MAX_NEW_TOKENS, heldout_items
from canvaslm.types import Reply

TASKS_COUNTED = ("sort", "json", "two_turns", "sudoku", "blanks", "functions", "capitals", "reverse", "long")


def group(fill: float) -> int:
    """Which answers one is counted with."""
    return next((i for i, most in enumerate(SHARES) if fill <= most), len(SHARES))


def habit(preset: str, replies: list[Reply], canvas: int) -> Habit:
    """The mean of some answers."""
    count, canvases = len(replies), [c for reply in replies for c in reply.canvases]
    steps = sum(c.steps for c in canvases)
    tokens = sum(len(reply.tokens) for reply in replies)
    causal = PRESETS[preset].get("decoding") == "causal"
    return Habit(
        preset, count, tokens / count / canvas, steps / count,
        sum(c.computed for c in canvases) / (steps * canvas) if steps else 0.0,
        0.0 if causal else sum(c.reads for c in canvases) / count,
        # A canvas that was read is encoded by that.
        0.0 if causal else sum(max(0, sum(not c.reads for c in r.canvases) - 1) for r in replies) / count,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", help="a model that knows these tasks; without it: the demo model")
    parser.add_argument("-n", type=int, default=60, help="items a task (60)")
    parser.add_argument("--seed", type=int, default=71)
    parser.add_argument("--out", type=Path, help="a file; without it: standard output")
    asked = parser.parse_args()
    habits: list[Habit] = []
    with canvaslm.load(asked.model) as session:
        canvas = session.engine.config.canvas_length
        for preset in ("quality", *(name for name in PRESETS if name != "quality")):
            groups: dict[int, list[Reply]] = {}
            for name in TASKS_COUNTED:
                print(preset, name, file=sys.stderr)
                items = [item.messages for item in heldout_items(TASKS[name], asked.n, asked.seed)]
                options = {"preset": preset, "max_new_tokens": MAX_NEW_TOKENS, "seed": asked.seed}
                for reply in session.generate_many(items, **options):
                    groups.setdefault(group(len(reply.tokens) / canvas), []).append(reply)
            habits += [habit(preset, groups[key], canvas) for key in sorted(groups) if len(groups[key]) >= 5]
    made = {
        "command": f"python benchmarks/habits.py -n {asked.n} --seed {asked.seed}",
        "model": asked.model or "demo",
        "canvas_length": canvas,
        "tasks": list(TASKS_COUNTED),
    }
    text = as_document(habits, made)
    if asked.out is None:
        print(text, end="")
    else:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
