#!/usr/bin/env python
"""What the causal reader's word is worth: of tokens, of right and wrong answers, of one in several.

    python benchmarks/doubt.py                                  # the demo model: all tables, a long while
    python benchmarks/doubt.py -n 100 --tasks sort,json --seeds 2
    python benchmarks/doubt.py --keep answers.jsonl             # writes the answers, or reads those it finds

Tasks have one right answer. A token is wrong if it does not stand in the right answer: place by place where
both have as many tokens, else as far as the two can be laid side by side. Intervals are of 95 %, by bootstrap
over items, since tokens of one answer and answers to one item go together.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import canvaslm
from canvaslm.demo.tasks import TASKS
from canvaslm.demo.tasks.base import Example
from canvaslm.evals.demo import MAX_NEW_TOKENS, heldout_items
from canvaslm.session.ranking import RETRIED
from canvaslm.text.doubt import LEVELS, doubt_level
from canvaslm.text.transcript import ReplyBuilder, Transcript
from canvaslm.types import Committed, Finished, Request

EDGES = (0.0, -0.1, -0.5, -1.0, -2.0, -4.5, -9.0, -math.inf)
SHIFTED = ("long",)  # a slip moves all that follows: which tokens are wrong then is not known
RESAMPLES = 300  # of the items, for an interval


@dataclass
class Answer:
    """One answer to item number `item`. Log-probabilities in nats, of each of `tokens`."""

    task: str
    item: int
    seed: int
    right: bool
    tokens: list[int]
    wrong: list[bool]
    causal: list[float]
    canvas: list[float]

    def score(self, reader: str, kind: str) -> float:
        """The mean or the least of what a reader says of the tokens."""
        values: list[float] = getattr(self, reader)
        return min(values) if kind == "least" else sum(values) / len(values)


def wrong_tokens(tokens: Sequence[int], wanted: Sequence[int]) -> list[bool]:
    """Of each token, whether it does not stand in the answer wanted; what follows a gap is wrong as well."""
    if len(tokens) == len(wanted):
        return [a != b for a, b in zip(tokens, wanted, strict=True)]
    wrong = [True] * len(tokens)
    for a, b, size in SequenceMatcher(None, tokens, wanted, autojunk=False).get_matching_blocks():
        wrong[a : a + size] = [False] * size
        if size and a == 0 and b > 0:
            wrong[a] = True
    return wrong


def collect(session: canvaslm.Session, task: str, items: list[Example], seeds: int) -> Iterator[Answer]:
    """The answers to each item under seeds 0, 1 ... of its own."""
    asked = [(i, item, 1000 * i + k) for i, item in enumerate(items) for k in range(seeds)]
    builders = [ReplyBuilder() for _ in asked]
    scripts = [Transcript(session.tokenizer) for _ in asked]
    said: list[tuple[list[float], list[float]]] = [([], []) for _ in asked]

    def requests() -> Iterator[Request]:
        for _, item, seed in asked:
            request = session.prepare(item.messages, seed=seed, max_new_tokens=MAX_NEW_TOKENS, doubt=True)
            yield request

    for number, event in session.driver.events_of_many(requests(), session.engine.scheduler.max_rows):
        builders[number].add(scripts[number].read(event))
        if isinstance(event, Committed):
            said[number][0].extend(read.logprob for read in event.reads)
            said[number][1].extend(event.logprobs)
        if isinstance(event, Finished):
            i, item, seed = asked[number]
            made, (causal, canvas) = builders[number], said[number]
            right = TASKS[task].check(item, made.text)
            wanted = [*session.tokenizer.encode(item.answer), made.tokens[-1]]
            wrong = [False] * len(made.tokens) if right else wrong_tokens(made.tokens, wanted)
            yield Answer(task, i, seed, right, made.tokens, wrong, causal, canvas)


def answers_of(args: argparse.Namespace) -> dict[str, list[Answer]]:
    """By task; taken from the file that keeps them, where they are in it."""
    kept = Path(args.keep) if args.keep else None
    found: dict[str, list[Answer]] = {}
    if kept is not None and kept.exists():
        for line in kept.read_text().splitlines():
            answer = Answer(**json.loads(line))
            found.setdefault(answer.task, []).append(answer)
    missing = [task for task in args.tasks.split(",") if task not in found]
    if missing:
        with canvaslm.load(args.model, threads=args.threads) as session:
            for task in missing:
                items = heldout_items(TASKS[task], args.n, args.seed)
                found[task] = sorted(collect(session, task, items, args.seeds), key=lambda a: a.seed)
                if kept is not None:
                    with kept.open("a") as file:
                        file.writelines(json.dumps(asdict(answer)) + "\n" for answer in found[task])
    return {task: found[task] for task in args.tasks.split(",")}


Groups = list[list[Answer]]  # the answers to each item


def interval(groups: list[Any], figure: Callable[[list[Any]], float | None]) -> str:
    """The figure and its 95 % interval: items drawn anew, with replacement."""
    rng, value = Random(0), figure(groups)
    if value is None:
        return "-"
    drawn = [figure(rng.choices(groups, k=len(groups))) for _ in range(RESAMPLES)]
    known = sorted(v for v in drawn if v is not None)
    low, high = known[int(0.025 * len(known))], known[int(0.975 * len(known)) - 1]
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def area(groups: Groups, reader: str, kind: str) -> float | None:
    """How often a right answer has more than a wrong one: the area under the ROC curve."""
    said = sorted((a.score(reader, kind), a.right) for group in groups for a in group)
    right = sum(good for _, good in said)
    wrong = len(said) - right
    if not right or not wrong:
        return None
    below = wins = 0.0
    i = 0
    while i < len(said):
        j = i
        while j < len(said) and said[j][0] == said[i][0]:
            j += 1
        good = sum(one[1] for one in said[i:j])
        wins += good * (below + 0.5 * (j - i - good))
        below += j - i - good
        i = j
    return wins / (right * wrong)


def chosen(groups: Groups, choose: Callable[[list[Answer]], Answer]) -> float:
    """Right answers, where of each item's one is chosen."""
    return sum(choose(group).right for group in groups) / len(groups)


def tally(group: list[Answer], reader: str, high: float, low: float) -> tuple[int, int]:
    """Of tokens with a log-probability from `low` up to below `high`: how many, and how many are wrong."""
    wrong = [
        bad
        for a in group
        for value, bad in zip(getattr(a, reader), a.wrong, strict=True)
        if low <= value < high or (high == 0.0 and value >= low)
    ]
    return len(wrong), sum(wrong)


def answer_tally(group: list[Answer], level: int) -> tuple[int, int]:
    """Of answers whose most doubtful token is of the level: how many, and how many are wrong."""
    wrong = [not a.right for a in group if doubt_level(min(a.causal)) == level]
    return len(wrong), sum(wrong)


def share(tallies: list[tuple[int, int]]) -> float | None:
    total = sum(count for count, _ in tallies)
    return sum(wrong for _, wrong in tallies) / total if total else None


def print_retries(args: argparse.Namespace, found: dict[str, Groups]) -> None:
    """The answers with doubtful tokens, with those written once more: right before and after, of all."""
    print("\n| task | answers | written once more | right before | right after |\n|---|---|---|---|---|")
    with canvaslm.load(args.model, threads=args.threads) as session:
        for task, groups in found.items():
            items = heldout_items(TASKS[task], args.n, args.seed)
            before = [[a.right for a in group] for group in groups]
            after = [list(rights) for rights in before]
            changed = 0
            for g, group in enumerate(groups):
                for k, answer in enumerate(group):
                    if doubt_level(min(answer.causal)) < RETRIED:
                        continue
                    item = items[answer.item]
                    reply = session.generate(
                        item.messages, seed=answer.seed, max_new_tokens=MAX_NEW_TOKENS, retry_doubtful=True
                    )
                    changed += bool(reply.notes)
                    after[g][k] = TASKS[task].check(item, reply.text)
            shares = [interval([(len(r), sum(r)) for r in rights], share) for rights in (before, after)]
            print(f"| {task} | {sum(map(len, groups))} | {changed} | {' | '.join(shares)} |", flush=True)


def print_tables(found: dict[str, Groups]) -> None:
    print("\n| task | answers | right | AUC causal, mean | causal, least | canvas, mean | canvas, least |")
    print("|---|---|---|---|---|---|---|")
    for task, groups in found.items():
        areas = [
            interval(groups, partial(area, reader=reader, kind=kind))
            for reader in ("causal", "canvas")
            for kind in ("mean", "least")
        ]
        right = interval(groups, lambda g: sum(a.right for x in g for a in x) / sum(map(len, g)))
        print(f"| {task} | {sum(map(len, groups))} | {right} | {' | '.join(areas)} |", flush=True)
    print("\n| task | first | best by causal | best by canvas | any |\n|---|---|---|---|---|")
    for task, groups in found.items():
        shares = [
            interval(groups, lambda g: chosen(g, lambda x: x[0])),
            interval(groups, lambda g: chosen(g, lambda x: max(x, key=lambda a: a.score("causal", "mean")))),
            interval(groups, lambda g: chosen(g, lambda x: max(x, key=lambda a: a.score("canvas", "mean")))),
            interval(groups, lambda g: sum(any(a.right for a in x) for x in g) / len(g)),
        ]
        print(f"| {task} | {' | '.join(shares)} |", flush=True)
    print("\n| most doubtful token | answers | wrong |\n|---|---|---|")
    pooled = [group for groups in found.values() for group in groups]
    for level in range(len(LEVELS) + 1):
        tallies = [answer_tally(group, level) for group in pooled]
        if number := sum(n for n, _ in tallies):
            print(f"| level {level} | {number} | {interval(tallies, share)} |", flush=True)
    pooled = [group for task, groups in found.items() if task not in SHIFTED for group in groups]
    for reader in ("causal", "canvas"):
        print(f"\n| {reader} log-probability | tokens | wrong |\n|---|---|---|")
        for high, low in pairwise(EDGES):
            tallies = [tally(group, reader, high, low) for group in pooled]
            if number := sum(n for n, _ in tallies):
                print(f"| {low:g} to {high:g} | {number} | {interval(tallies, share)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a folder, a file or a hub id; without it the demo model")
    parser.add_argument("-n", type=int, default=200, help="items of each task")
    parser.add_argument("--seeds", type=int, default=4, help="answers to each item")
    parser.add_argument("--seed", type=int, default=7, help="of the items")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--tasks", default="sort,blanks,two_turns,json,reverse,capitals,functions,sudoku,long"
    )
    parser.add_argument("--keep", metavar="FILE", help="write the answers here, and read those it has")
    parser.add_argument("--retry", action="store_true", help="only measure retry_doubtful")
    args = parser.parse_args()
    found: dict[str, Groups] = {}
    for task, answers in answers_of(args).items():
        items: dict[int, list[Answer]] = {}
        for answer in answers:
            items.setdefault(answer.item, []).append(answer)
        found[task] = list(items.values())
    if args.retry:
        print_retries(args, found)
    else:
        print_tables(found)


if __name__ == "__main__":
    main()
