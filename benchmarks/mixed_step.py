#!/usr/bin/env python
"""What it saves to encode a committed canvas in the same pass as the next canvas's
first step: a Markdown table.

    python benchmarks/mixed_step.py                                # the demo model
    python benchmarks/mixed_step.py -m model.gguf --rows 1,4 --context 256
    python benchmarks/mixed_step.py --steps 1                      # a commit in every step

Two engines on one model run the same requests, step by step in turn: one makes one pass a step, the other
encodes in passes of its own. Rows are staggered, so that in every step as few of them commit as can be. A
line compares the steps in which at least one row commits; the ratio is the median over pairs of steps. "no
commit" is a step without any.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from random import Random

import canvaslm
from canvaslm.engine import Engine
from canvaslm.types import Params, Request


@dataclass
class Times:
    """Milliseconds of steps with a commit, of one pass and of several, pair by pair;
    and of steps without one."""

    mixed: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)

    def line(self, rows: int) -> str:
        ratio = statistics.median(m / a for m, a in zip(self.mixed, self.apart, strict=True))
        without = f"{statistics.median(self.without):.1f}" if self.without else "-"
        one, several = statistics.median(self.mixed), statistics.median(self.apart)
        return f"| {rows} | {without} | {several:.1f} | {one:.1f} | {ratio:.2f} |"


def request(engine: Engine, row: int, args: argparse.Namespace, steps: int, canvases: int) -> Request:
    random = Random(f"mixed/{row}")
    tokens = tuple(random.randrange(engine.config.vocab_size) for _ in range(args.context))
    length = canvases * engine.config.canvas_length
    return Request(
        tokens,
        Params(max_new_tokens=length, max_denoising_steps=steps, confidence_threshold=0.0, seed=row),
    )


def timed_step(engine: Engine) -> float:
    begin = time.perf_counter()
    engine.step()
    return 1000 * (time.perf_counter() - begin)


def measure(model_engine: Engine, rows: int, args: argparse.Namespace) -> Times:
    model, times = model_engine.runner.model, Times()
    steps = args.steps or max(3, rows)
    canvases = args.repeats + -(-rows // steps) + 3
    engines = [
        Engine(model, max_rows=rows, prefix_memory=0, kv_type=model_engine.runner.kv_type, mixed=mixed)
        for mixed in (True, False)
    ]
    for row in range(rows):
        for engine in engines:
            engine.submit(request(engine, row, args, steps, canvases))
            engine.step()
    step = 0
    while len(times.mixed) < args.repeats:
        commits = any(s.reports and s.pending for s in engines[0].scheduler.running)
        # Who goes first changes, so that neither always finds the caches as the other left them.
        took = {i: timed_step(engines[i]) for i in ((0, 1) if step % 2 else (1, 0))}
        if commits:
            times.mixed.append(took[0])
            times.apart.append(took[1])
        else:
            times.without += took.values()
        step += 1
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", help="a checkpoint; the demo model without it")
    parser.add_argument("--rows", default="1,4", help="canvases at once, several separated by commas")
    parser.add_argument("--context", type=int, default=64, help="tokens of each prompt")
    parser.add_argument(
        "--steps", type=int, help="denoise steps a canvas; as many as rows, 3 at least, without it"
    )
    parser.add_argument("--repeats", type=int, default=20, help="steps with a commit to time")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    session = canvaslm.load(args.model, threads=args.threads)
    places = session.engine.config.canvas_length
    print(f"{session.name}, canvas {places}, prompts of {args.context} tokens; milliseconds a step\n")
    print("| rows | no commit | commit, own pass | commit, same pass | ratio |")
    print("|---|---|---|---|---|")
    for rows in map(int, args.rows.split(",")):
        with session.threads.in_use():
            print(measure(session.engine, rows, args).line(rows), flush=True)


if __name__ == "__main__":
    main()
