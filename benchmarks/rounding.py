#!/usr/bin/env python
"""What the native kernels' rounding costs beside what a quantised file costs: a Markdown
table for docs/formats.md.

    python benchmarks/rounding.py # a random model with the full vocabulary, every type; about 3 GB python
    benchmarks/rounding.py --types Q4_K_M --places 256

A model of random weights (`canvaslm synth --shape small`) is quantised to each type. Two references, both in
fp32: the unquantised weights, and the file's own weights unpacked. Against the first stands what type and
kernels cost together, against the second what the kernels alone cost: activations and dense matrices rounded
to int8, keys and values to 16 bits. "exact kinds" leaves the matrices in the file's formats. Random layers
amplify errors and their routers choose by hair's breadth: the columns compare with each other, not with a
trained model (for which see benchmarks/formats.py).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from canvaslm.cache import DenoiseContext, EncodeContext
from canvaslm.engine.runner import Runner
from canvaslm.model import Model
from canvaslm.ops.cpu import repacked as packed
from canvaslm.ops.quantised import QuantVocabulary
from canvaslm.weights.gguf.quantize import write_gguf
from canvaslm.weights.gguf.source import open_source
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.resolve import resolve
from canvaslm.weights.synth import SYNTH_SHAPES, plan_synth, write_synth

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
PROMPT, CANVAS, TEMPERATURE = 64, 256, 0.6


@contextmanager
def exact_kinds() -> Iterator[None]:
    """While loading: every matrix in the format of the file."""
    with patch("canvaslm.ops.cpu.layers.dense_kind", packed.repacked_kind):
        yield


def load(path: Path, dtype: str | None = None) -> Model:
    return load_model(resolve(path), dtype=dtype).model


@torch.no_grad()
def hidden(model: Model, tokens: Tensor) -> Tensor:
    """Final states [CANVAS, H] of a canvas's first step behind a prompt."""
    cache = Runner(model).new_cache(PROMPT + CANVAS)
    model.encode(tokens[None, :PROMPT], torch.arange(PROMPT)[None], EncodeContext(cache))
    cache.advance(PROMPT)
    positions = PROMPT + torch.arange(CANVAS)[None]
    return model.denoise(tokens[None, PROMPT:], positions, DenoiseContext(cache))[0]


@torch.no_grad()
def log_probabilities(states: Tensor, head: Tensor | QuantVocabulary, softcap: float) -> Tensor:
    assert isinstance(head, Tensor)
    return (torch.tanh(F.linear(states, head) / softcap) * softcap / TEMPERATURE).log_softmax(-1)


def compared(expected: Tensor, found: Tensor) -> str:
    kl = (expected.exp() * (expected - found)).sum(-1).mean()
    same = (expected.argmax(-1) == found.argmax(-1)).float().mean()
    return f"{float(kl):.4f} | {float(same):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--places", type=int, default=64, help="places of the canvas that are compared")
    args = parser.parse_args()
    config = SYNTH_SHAPES["small"]
    tokens = torch.randint(
        1000, config.vocab_size, (PROMPT + CANVAS,), generator=torch.Generator().manual_seed(0)
    )
    print("| type | kernels | KL to the unquantised | same argmax | KL to the file in fp32 | same argmax |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "BF16.gguf"
        write_synth(plan_synth("small", "BF16"), source)
        original = load(source, "float32")
        truth = log_probabilities(hidden(original, tokens)[: args.places], original.embedding, config.softcap)
        del original
        for kind in args.types:
            path = Path(folder) / f"{kind}.gguf"
            write_gguf(open_source(source), path, kind)
            unpacked = load(path, "float32")
            head = unpacked.embedding
            own = log_probabilities(hidden(unpacked, tokens)[: args.places], head, config.softcap)
            del unpacked
            print(f"| {kind} | none: fp32 | {compared(truth, own)} | 0 | 1 |", flush=True)
            with exact_kinds():
                exact = load(path)
            for label, model in (("exact kinds", exact), ("as loaded", load(path))):
                found = log_probabilities(hidden(model, tokens)[: args.places], head, config.softcap)
                print(f"| {kind} | {label} | {compared(truth, found)} | {compared(own, found)} |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
