#!/usr/bin/env python
"""What guaranteed structure does to right answers: the demo's json task under schemas, for docs/log.md.

    python benchmarks/structure.py -n 200

Held-out items of the json task, each under four schemas: one that agrees with what the model was trained to
write; one with a key more, in front; one whose keys have other names; and one that allows no white space.
Five ways: none (the free answer), the most probable valid text whose tokens keep their places, the nearest
valid text (the default), that with one repair, and that of canvases denoised under masks. Right is a document
that validates and whose values are the item's. Shares with their 95 % intervals (Wilson), and steps of an
answer in the mean. The first three ways read the same canvases. A last line counts the answers of the other
ways than none that are not valid.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import canvaslm
from canvaslm.constrain import answers
from canvaslm.constrain.regular import Regular
from canvaslm.constrain.vocabulary import Vocabulary
from canvaslm.demo.tasks import TASKS, Example
from canvaslm.engine import Engine
from canvaslm.evals.demo import heldout_items
from canvaslm.evals.score import wilson
from canvaslm.options import StreamOptions
from canvaslm.session.structures import vocabulary_of
from canvaslm.types import Committed, Constraint, Failed, Finished, Projection, Readout, Request

BUDGET, STEPS, RENAMED = 128, "1,8,48", "the_"
WAYS = ("none", "places kept", "nearest", "repaired", "masked")
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


@dataclass
class Written:
    """An answer's tokens, and the steps that it took."""

    tokens: list[int] = field(default_factory=list)
    steps: int = 0


def run(engine: Engine, requests: Sequence[Request]) -> list[Written]:
    """Each request's answer; all are denoised together."""
    places = {engine.submit(request): place for place, request in enumerate(requests)}
    found = [Written() for _ in requests]
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Committed):
                found[places[event.request_id]].tokens += event.tokens
            if isinstance(event, Finished):
                found[places[event.request_id]].steps = sum(canvas.steps for canvas in event.canvases)
    return found


@dataclass(frozen=True)
class Scores:
    """Of one way: how many answers are valid, how many right, of how many; their steps in the mean."""

    valid: int
    right: int
    count: int
    steps: float

    def __str__(self) -> str:
        low, high = wilson(self.right, self.count)
        return f"{self.right / self.count:.2f} ({low:.2f}-{high:.2f}) | {self.steps:.2f}"


@dataclass
class Table:
    session: canvaslm.Session
    words: Vocabulary
    items: Sequence[Example]

    def requests(
        self, steps: int, constraints: Sequence[Constraint], **others: Unpack[StreamOptions]
    ) -> list[Request]:
        """One an item, its seed the item's number."""
        made = []
        for seed, (item, constraint) in enumerate(zip(self.items, constraints, strict=True)):
            options: StreamOptions = {
                "seed": seed, "max_denoising_steps": steps, "max_new_tokens": BUDGET, **others
            }  # fmt: skip
            request = self.session._request(item.messages, options)[0]
            made.append(replace(request, constraint=constraint))
        return made

    def text(self, answer: Written) -> str:
        return self.session.tokenizer.decode(answer.tokens)

    def rows(self, steps: int) -> dict[str, dict[str, Scores]]:
        """{schema: {way: its scores}}."""
        recorders = [Recorder() for _ in self.items]
        free = run(self.session.engine, self.requests(steps, recorders))
        found: dict[str, dict[str, Scores]] = {}
        asked = [wishes(item) for item in self.items]
        for name in asked[0]:
            wanted = [wish[name] for wish in asked]
            nearest = [answers.schema(wish.schema, self.words, space=wish.space) for wish in wanted]
            kept = [replace(constraint, edits=False) for constraint in nearest]
            engine = self.session.engine
            answers_of = {
                "none": free,
                "places kept": self.projected(steps, kept, recorders, free),
                "nearest": self.projected(steps, nearest, recorders, free),
                "repaired": run(engine, self.requests(steps, nearest, repair=1)),
                "masked": run(engine, self.requests(steps, nearest, mask="denoise")),
            }
            found[name] = {way: self.scores(wanted, nearest, answers) for way, answers in answers_of.items()}
        return found

    def scores(
        self, wanted: Sequence[Wish], constraints: Sequence[Regular], written: Sequence[Written]
    ) -> Scores:
        judged = [
            wish.judge(self.text(answer), by)
            for wish, by, answer in zip(wanted, constraints, written, strict=True)
        ]
        steps = sum(answer.steps for answer in written) / len(written)
        return Scores(
            sum(valid for valid, _ in judged), sum(right for _, right in judged), len(judged), steps
        )

    def projected(
        self,
        steps: int,
        constraints: Sequence[Regular],
        recorders: Sequence[Recorder],
        free: Sequence[Written],
    ) -> list[Written]:
        found = []
        for place, (constraint, recorder) in enumerate(zip(constraints, recorders, strict=True)):
            projection = constraint.project(constraint.start(), recorder.seen[0])
            answer = Written(list(projection.tokens), free[place].steps)
            if not projection.ended:  # it goes on on another canvas
                every: list[Constraint] = [constraint] * len(self.items)
                answer = run(self.session.engine, [self.requests(steps, every)[place]])[0]
            found.append(answer)
        return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("-n", type=int, default=200)
    arguments.add_argument("--steps", default=STEPS, help="steps at most, with commas between")
    args = arguments.parse_args()
    count = args.n
    with canvaslm.load() as session:
        pad = session.tokenizer.pad_id or 0
        size = session.engine.config.vocab_size
        words = vocabulary_of(session.tokenizer, size, session.eos_token_ids, pad)
        table = Table(session, words, heldout_items(TASKS["json"], count, ITEMS))
        print(f"n = {len(table.items)}, seeds 0 to {len(table.items) - 1}\n")
        heads = " | ".join(f"{way} | steps" for way in WAYS)
        print(f"| schema | steps at most | none: valid | {heads} |")
        print("|---" * (3 + 2 * len(WAYS)) + "|")
        invalid = 0
        for steps in map(int, args.steps.split(",")):
            for name, ways in table.rows(steps).items():
                cells = " | ".join(str(ways[way]) for way in WAYS)
                print(f"| {name} | {steps} | {ways['none'].valid / count:.2f} | {cells} |", flush=True)
                invalid += sum(ways[way].count - ways[way].valid for way in WAYS[1:])
        print(f"\nnot valid: {invalid}")


if __name__ == "__main__":
    main()
