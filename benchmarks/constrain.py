#!/usr/bin/env python
"""What a constrained canvas costs: a table for docs/log.md.

    python benchmarks/constrain.py VOCABULARY.gguf     # any GGUF file with Gemma 4's tokenizer

An invoice schema of 25 fields, 256 places, the 16 most probable tokens of each. Four canvases: a document
that is valid; the same with every key named otherwise; one with a tenth of its places wrong; and one of a
model that knows nothing. Processor times of one canvas, the least of several, and of compiling.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from canvaslm.constrain import answers, edit, lattice, path
from canvaslm.constrain.lattice import PlainLattice
from canvaslm.constrain.regular import Regular
from canvaslm.session.structures import vocabulary_of
from canvaslm.text.tokenizer import Tokenizer
from canvaslm.types import Readout
from canvaslm.weights.gguf.file import GGUFFile

PLACES, TOP, FIELDS, REPEATS = 256, 16, 25, 5
VALUES: Sequence[tuple[dict[str, Any], Any]] = (
    ({"type": "string"}, "Miller & Sons, 12 Long Road"),
    ({"type": "integer", "minimum": 0}, 1234),
    ({"type": "number"}, 99.5),
    ({"type": "string", "format": "date"}, "2026-11-30"),
    ({"enum": ["EUR", "USD", "GBP"]}, "EUR"),
)


def schema() -> dict[str, Any]:
    """The invoice."""
    properties = {f"field_{i}": VALUES[i % len(VALUES)][0] for i in range(FIELDS)}
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def document(prefix: str) -> str:
    """An invoice whose keys begin like this, short enough for a canvas."""
    return json.dumps({f"{prefix}_{i}": VALUES[i % len(VALUES)][1] for i in range(FIELDS)})


def readout(tokens: Sequence[int], rng: np.random.Generator, size: int, *, sure: float) -> Readout:
    """Each place names its token first, with a probability of about `sure`, and others at random."""
    named = rng.integers(3, size, (PLACES, TOP))
    named[:, 0] = tokens
    left = rng.random((PLACES, TOP)) * (1 - sure) / TOP
    logprobs = np.log(np.concatenate([np.full((PLACES, 1), sure), -np.sort(-left[:, 1:], axis=1)], 1))
    best, values = (tuple(map(tuple, table.tolist())) for table in (named, logprobs))
    return Readout(best_of(best), (False,) * PLACES, best, values, 4 * PLACES)


def best_of(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The argmax."""
    return tuple(row[0] for row in rows)


def canvases(tokenizer: Tokenizer, size: int, end: int, pad: int) -> dict[str, Readout]:
    """The four."""
    rng = np.random.default_rng(0)

    def padded(text: str) -> list[int]:
        tokens = [*tokenizer.encode(text), end]
        return (tokens + [pad] * PLACES)[:PLACES]

    right = padded(document("field"))
    wrong = [int(rng.integers(3, size)) if rng.random() < 0.1 else token for token in right]
    noise = rng.integers(3, size, PLACES).tolist()
    return {
        "valid": readout(right, rng, size, sure=0.9),
        "other key names": readout(padded(document("entry")), rng, size, sure=0.9),
        "a tenth wrong": readout(wrong, rng, size, sure=0.9),
        "noise": readout(noise, rng, size, sure=0.1),
    }


def best(work: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of a few runs."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return 1000 * min(times)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("vocabulary", type=Path)
    file = arguments.parse_args().vocabulary
    with GGUFFile(file) as opened:
        tokenizer = Tokenizer.from_gguf(opened.plain("tokenizer."))
    ends, pad = tokenizer.eos_ids, tokenizer.pad_id or 0
    words = vocabulary_of(tokenizer, tokenizer.vocab_size, ends, pad)
    words.ids  # noqa: B018 - once a model
    compiling = best(lambda: answers.schema(schema(), words))
    constraint = answers.schema(schema(), words)
    steps = constraint.steps
    print(f"{words.size} tokens, {steps.automaton.states} states, {len(steps.source)} edges")
    print(f"compiled in {compiling:.0f} ms; {constraint.shortest} tokens at least\n")
    print("| canvas | nearest, native, ms | nearest, numpy, ms | places kept, native | places kept, numpy |")
    print("|---|---|---|---|---|")
    kept, twins = Regular(steps, edits=False), (lattice.lattice_of, PlainLattice)
    for name, canvas in canvases(tokenizer, words.size, ends[0], pad).items():
        times = []
        for chosen in (constraint, kept):
            for twin in twins:
                with patch.object(path, "lattice_of", twin), patch.object(edit, "lattice_of", twin):
                    times.append(best(partial(chosen.project, chosen.start(), canvas)))
        print(f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in times) + " |", flush=True)


if __name__ == "__main__":
    main()
