"""What reading a document out of a canvas costs: by llguidance's beam, and by an automaton.

    python benchmarks/grammar_readout.py [--tokens 262144] [--places 256] [--repeats 5]

The vocabulary is made up: all bytes, and words drawn from letters and signs of JSON. Canvases: `sure` says a
document; `damaged` says it with every tenth place replaced at random, as sure as before; `flat` says nothing.
Milliseconds are those of a busy machine: read the ratios of one run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

import numpy as np

from canvaslm.constrain.answers import schema
from canvaslm.constrain.grammar import json_schema
from canvaslm.constrain.matchers import Matchers
from canvaslm.constrain.vocabulary import Vocabulary
from canvaslm.types import Constraint, Readout

TOP, EOS, PAD = 16, 1, 0
LETTERS = ' etaoinshrdlucmfwypvbgkjqxz{}[]":,.0123456789_-\n'
FIELDS = 25
INVOICE = {
    "type": "object",
    "properties": {
        f"field_{i}": [{"type": "string"}, {"type": "integer"}, {"type": "boolean"}][i % 3]
        for i in range(FIELDS)
    },
    "required": [f"field_{i}" for i in range(FIELDS)],
    "additionalProperties": False,
}


def vocabulary(size: int) -> Vocabulary:
    """`size` tokens: padding, an end, 256 bytes, then different words of 2 to 9 letters."""
    dice = random.Random(0)
    words: dict[bytes, None] = {}
    while len(words) < size - 258:
        words["".join(dice.choices(LETTERS, k=dice.randint(2, 9))).encode()] = None
    texts = [b"", b"", *(bytes((byte,)) for byte in range(256)), *words]
    return Vocabulary.of(texts, (PAD, EOS), [b"<pad>", b"<eos>", *texts[2:]], (EOS,), PAD, {})


def canvas(words: Vocabulary, places: int, kind: str, seed: int) -> Readout:
    """A readout of one kind, with other tokens and weights for each seed."""
    dice = np.random.default_rng(seed)
    values = ["some words of text", 1234, True]
    document = {f"field_{i}": values[i % 3] for i in range(FIELDS)}
    said = Matchers.of(words).split(json.dumps(document).encode())[: places - 1]
    said += [EOS] + [PAD] * (places - len(said) - 1)
    rows = np.stack([dice.choice(np.arange(2, words.size), TOP, replace=False) for _ in range(places)])
    if kind != "flat":
        kept = np.ones(places, bool) if kind == "sure" else dice.random(places) > 0.1
        rows[kept, 0] = np.array(said)[kept]
    spread = -0.5 * np.arange(TOP) if kind == "flat" else -8.0 - np.arange(TOP)
    logprobs = np.tile(spread - 3.0 * (kind == "flat"), (places, 1))
    logprobs[:, 0] = logprobs[:, 0] if kind == "flat" else -0.01
    return Readout(
        tuple(rows[:, 0].tolist()),
        (False,) * places,
        tuple(map(tuple, rows.tolist())),
        tuple(map(tuple, logprobs.tolist())),
        4 * places,
    )


def milliseconds(constraint: Constraint, readouts: list[Readout]) -> list[float]:
    """Of each readout, from the beginning of a document."""
    found = []
    for readout in readouts:
        begin = time.perf_counter()
        constraint.project(constraint.start(), readout)
        found.append(1000 * (time.perf_counter() - begin))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--places", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    words = vocabulary(options.tokens)
    begin = time.perf_counter()
    grammar = json_schema(INVOICE, words)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    grammar = json_schema(INVOICE, words)
    print(f"grammar compiled: {first:.2f} s the first time, {time.perf_counter() - begin:.3f} s then")
    begin = time.perf_counter()
    automaton = schema(INVOICE, words)
    print(f"automaton compiled: {time.perf_counter() - begin:.2f} s")
    for kind in ("sure", "damaged", "flat"):
        readouts = [canvas(words, options.places, kind, seed) for seed in range(options.repeats + 1)]
        beam, exact = (milliseconds(each, readouts)[1:] for each in (grammar, automaton))
        ratio = statistics.median(a / b for a, b in zip(beam, exact, strict=True))
        print(
            f"{kind}: beam {statistics.median(beam):.0f} ms ({min(beam):.0f} to {max(beam):.0f}), automaton "
            f"{statistics.median(exact):.0f} ms, beam / automaton {ratio:.1f} (n {options.repeats})"
        )


if __name__ == "__main__":
    main()
