#!/usr/bin/env python
"""What guaranteed structure does to right answers: the demo's json task under schemas, for docs/log.md.

    python benchmarks/structure.py -n 200

Held-out items of the json task, each under four schemas: one that agrees with what the model was trained to
write; one with a key more, in front; one whose keys have other names; and one that allows no white space.
Four ways: none (the free answer), the most probable valid text whose tokens keep their places, the nearest
valid text (the default), and that with one repair. Right is a document that validates and whose values are
the item's. Shares with their 95 % intervals (Wilson). But for the repair, each canvas is denoised once and
read out in all ways.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import canvaslm
from canvaslm.constrain import answers
from canvaslm.constrain.regular import Regular
from canvaslm.constrain.vocabulary import Vocabulary
from canvaslm.demo.tasks import TASKS, Example
from canvaslm.engine import Engine
from canvaslm.evals.demo import heldout_items
from canvaslm.options import StreamOptions
from canvaslm.session.structures import vocabulary_of
from canvaslm.types import Committed, Constraint, Failed, Projection, Readout, Request

BUDGET, STEPS, RENAMED = 128, (1, 8, 48), "the_"
ITEMS = 1  # seed of the items: others than those that prices were chosen on
TYPES = {str: "string", int: "integer", bool: "boolean"}


@dataclass(frozen=True)
class Recorder:
    """Keeps what the first canvas says, and ends there."""

    seen: list[Readout] = field(default_factory=list)
    top: int = 16
    shortest: int = 1

    def start(self) -> int:
        return 0

    def project(self, state: int, readout: Readout) -> Projection:
        self.seen.append(readout)
        return Projection(readout.tokens, tuple(range(len(readout.tokens))), 0, ended=True)


@dataclass(frozen=True)
class Wish:
    """A schema for an item, and the document that is right."""

    schema: dict[str, Any]
    right: dict[str, Any]
    space: str | None = None

    def judge(self, text: str, constraint: Regular) -> tuple[bool, bool]:
        """(valid, right)."""
        if not constraint.steps.automaton.accepts(text.encode()):
            return False, False
        return True, list(json.loads(text).items()) == list(self.right.items())


def wishes(item: Example) -> dict[str, Wish]:
    """The four schemas of an item."""
    right = json.loads(item.answer)
    renamed = {RENAMED + key: value for key, value in right.items()}
    return {
        "agrees": Wish(schema(right), right),
        "one more key": Wish(schema({"kind": "record", **right}), {"kind": "record", **right}),
        "other key names": Wish(schema(renamed), renamed),
        "no white space": Wish(schema(right), right, space=""),
    }


def schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """Objects with these keys and values of these types; `kind` is a constant."""
    properties = {
        key: {"const": value} if key == "kind" else {"type": TYPES[type(value)]}
        for key, value in document.items()
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def run(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """The tokens of each request's answer; all are denoised together."""
    places = {engine.submit(request): place for place, request in enumerate(requests)}
    found: list[list[int]] = [[] for _ in requests]
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Committed):
                found[places[event.request_id]] += event.tokens
    return found


@dataclass
class Table:
    session: canvaslm.Session
    words: Vocabulary
    items: Sequence[Example]

    def requests(self, steps: int, constraints: Sequence[Constraint], repair: int = 0) -> list[Request]:
        """One an item, its seed the item's number."""
        made = []
        for seed, (item, constraint) in enumerate(zip(self.items, constraints, strict=True)):
            options: StreamOptions = {
                "seed": seed, "max_denoising_steps": steps, "max_new_tokens": BUDGET,
                "repair": repair,
            }  # fmt: skip
            request = self.session._request(item.messages, options)[0]
            made.append(replace(request, constraint=constraint))
        return made

    def text(self, tokens: Sequence[int]) -> str:
        return self.session.tokenizer.decode(tokens)

    def rows(self, steps: int) -> dict[str, dict[str, list[tuple[bool, bool]]]]:
        """{schema: {way: (valid, right) of each item}}."""
        recorders = [Recorder() for _ in self.items]
        free = [self.text(tokens) for tokens in run(self.session.engine, self.requests(steps, recorders))]
        found: dict[str, dict[str, list[tuple[bool, bool]]]] = {}
        asked = [wishes(item) for item in self.items]
        for name in asked[0]:
            wanted = [wish[name] for wish in asked]
            nearest = [answers.schema(wish.schema, self.words, space=wish.space) for wish in wanted]
            kept = [replace(constraint, edits=False) for constraint in nearest]
            texts = {
                "none": free,
                "places kept": self.projected(steps, kept, recorders),
                "nearest": self.projected(steps, nearest, recorders),
                "repaired": self.repaired(steps, nearest),
            }
            found[name] = {
                way: [w.judge(text, by) for w, text, by in zip(wanted, of_way, nearest, strict=True)]
                for way, of_way in texts.items()
            }
        return found

    def repaired(self, steps: int, constraints: Sequence[Regular]) -> list[str]:
        return [
            self.text(tokens)
            for tokens in run(self.session.engine, self.requests(steps, constraints, repair=1))
        ]

    def projected(
        self, steps: int, constraints: Sequence[Regular], recorders: Sequence[Recorder]
    ) -> list[str]:
        texts = []
        for place, (constraint, recorder) in enumerate(zip(constraints, recorders, strict=True)):
            projection = constraint.project(constraint.start(), recorder.seen[0])
            tokens = list(projection.tokens)
            if not projection.ended:  # it goes on on another canvas
                every: list[Constraint] = [constraint] * len(self.items)
                tokens = run(self.session.engine, [self.requests(steps, every)[place]])[0]
            texts.append(self.text(tokens))
        return texts


def interval(hits: int, count: int) -> str:
    """A share with its 95 % interval."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return f"{share:.2f} ({middle - half:.2f}-{middle + half:.2f})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("-n", type=int, default=200)
    count = arguments.parse_args().n
    with canvaslm.load() as session:
        pad = session.tokenizer.pad_id or 0
        size = session.engine.config.vocab_size
        words = vocabulary_of(session.tokenizer, size, session.eos_token_ids, pad)
        table = Table(session, words, heldout_items(TASKS["json"], count, ITEMS))
        print(f"n = {len(table.items)}, seeds 0 to {len(table.items) - 1}\n")
        heads = [f"{way}: valid | right" for way in ("none", "places kept", "nearest", "repaired")]
        print(f"| schema | steps | {' | '.join(heads)} |")
        print("|---" * (2 + 2 * len(heads)) + "|")
        for steps in STEPS:
            for name, ways in table.rows(steps).items():
                cells = []
                for scores in ways.values():
                    cells.append(f"{sum(valid for valid, _ in scores) / len(scores):.2f}")
                    cells.append(interval(sum(right for _, right in scores), len(scores)))
                print(f"| {name} | {steps} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
