#!/usr/bin/env python
"""Teaches the demo model a task that it fails: to sort numbers downwards ("Largest first: 90 14 58").

    python examples/largest_first.py make data            # data/train.jsonl, data/test.jsonl
    canvaslm finetune --data data/train.jsonl --valid 5% --out runs/largest \\
        --lr 4e-3 --batch 32 --steps 280
    python examples/largest_first.py check data --adapter runs/largest/adapter

`check` answers the held-out prompts (none of their sets of numbers was trained on) with the base and with the
adapter, and prints the shares that are right with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

PROMPT = "Largest first: "


def numbers(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(10, 99) for _ in range(rng.randint(3, 5)))


def chat(values: tuple[int, ...]) -> str:
    asked, answer = (" ".join(map(str, v)) for v in (values, sorted(values, reverse=True)))
    messages = [{"role": "user", "content": PROMPT + asked}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


def replayed(count: int, rng: random.Random) -> list[str]:
    """Chats of what the demo model can do already: trained on one task alone, an adapter unlearns them."""
    from canvaslm.demo.tasks import TASKS

    tasks = list(TASKS.values())
    examples = (tasks[i % len(tasks)].sample(rng) for i in range(count))
    return [
        json.dumps({"messages": [*one.messages, {"role": "assistant", "content": one.answer}]}) + "\n"
        for one in examples
    ]


def make(folder: Path, train: int, test: int, replay: int = 0) -> None:
    rng = random.Random("largest first")
    apart = {numbers(rng) for _ in range(test)}
    while len(apart) < test:
        apart.add(numbers(rng))
    held = {tuple(sorted(values)) for values in apart}
    kept: list[tuple[int, ...]] = []
    while len(kept) < train:
        if tuple(sorted(values := numbers(rng))) not in held:
            kept.append(values)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*map(chat, kept), *replayed(replay, rng)]
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "test.jsonl").write_text("".join(map(chat, sorted(apart))))


def check(folder: Path, model: str | None, adapter: Path) -> None:
    import canvaslm
    from canvaslm.evals.score import wilson

    lines = (folder / "test.jsonl").read_text().splitlines()
    asked, wanted = zip(
        *((m[0]["content"], m[1]["content"]) for m in (json.loads(line)["messages"] for line in lines)),
        strict=True,
    )
    with canvaslm.load(model, adapters={"largest": adapter}) as session:
        for name in (None, "largest"):
            options = {"adapter": name} if name else {}
            replies = session.generate_many(asked, seed=0, **options)
            right = sum(reply.text == answer for reply, answer in zip(replies, wanted, strict=True))
            low, high = wilson(right, len(asked))
            print(f"{name or 'base'}: {right} of {len(asked)} right, {low:.3f} to {high:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=("make", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="examples to train on (2000)")
    parser.add_argument("--replay", type=int, default=0, help="chats of the demo's own tasks besides (0)")
    parser.add_argument("--test", type=int, default=200, help="held-out examples (200)")
    parser.add_argument("--model", help="the base; without it the demo model")
    parser.add_argument("--adapter", type=Path, default=Path("runs/largest/adapter"))
    given = parser.parse_args()
    if given.action == "make":
        make(given.folder, given.train, given.test, given.replay)
    else:
        check(given.folder, given.model, given.adapter)


if __name__ == "__main__":
    main()
