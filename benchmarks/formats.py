#!/usr/bin/env python
"""What each quantised format costs in accuracy, against fp32, on the demo model: a Markdown
table for docs/formats.md.

    python benchmarks/formats.py                    # demo model, every type that can be written
    python benchmarks/formats.py -m FOLDER -n 50
    python benchmarks/formats.py --kv               # what each type of keys and values costs instead

Per type: file size, KL divergence of the next step's distributions (nats a place, mean), how often the
most probable token is the same, both on half-noised held-out answers; and the refined Sudoku score and
steps a canvas. With native kernels the weights stay packed and activations are rounded to int8; `--plain`
unpacks the weights instead.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import canvaslm
from canvaslm.cache import DenoiseContext, EncodeContext
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.demo.stream import Encoder
from canvaslm.demo.tasks import TASKS
from canvaslm.evals.demo import heldout_items
from canvaslm.evals.points import REFINED
from canvaslm.evals.run import EvalOptions, evaluate
from canvaslm.evals.session_answers import SessionAnswerer
from canvaslm.ops.predict import draw, predict
from canvaslm.session import Session
from canvaslm.weights.gguf.quantize import write_gguf
from canvaslm.weights.gguf.source import open_source

TYPES = ("BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
Pairs = list[tuple[list[int], torch.Tensor]]
PLACES = ("sudoku", "json", "functions", "blanks", "long")


def noisy_canvases(count: int) -> Pairs:
    """(prompt, canvas) pairs: the first canvas of a right answer, half of its places
    replaced by random tokens."""
    encoder, random, pairs = Encoder(MODEL_FOLDER), torch.Generator().manual_seed(0), []
    for name in PLACES:
        for example in heldout_items(TASKS[name], count, seed=1):
            answer = encoder.response(example)[:64]
            clean = torch.tensor(answer + [1] * (64 - len(answer)))
            noise = torch.randint(1024, (64,), generator=random)
            pairs.append(
                (encoder.prompt(example), torch.where(torch.rand(64, generator=random) < 0.5, noise, clean))
            )
    return pairs


@torch.inference_mode()
def log_probabilities(session: Session, prompt: list[int], canvas: torch.Tensor) -> torch.Tensor:
    """Of every token of the vocabulary at every place [C, V], at temperature 0.6, on a canvas's first
    step."""
    model, cache = session.engine.runner.model, session.engine.runner.new_cache()
    model.encode(torch.tensor([prompt]), torch.arange(len(prompt))[None], EncodeContext(cache))
    cache.advance(len(prompt))
    positions = len(prompt) + torch.arange(len(canvas))[None]
    hidden = model.denoise(canvas[None], positions, DenoiseContext(cache))
    vocab = model.config.vocab_size
    said = predict(
        hidden, model.head, model.embedding, softcap=model.config.softcap, temperature=[0.6],
        draws=[draw(0, 0, 0, len(canvas), vocab, "cpu")], soft=False, top=vocab,
    )  # fmt: skip
    assert said.top_tokens is not None
    assert said.top_logprobs is not None
    return torch.empty(len(canvas), vocab).scatter_(1, said.top_tokens[0], said.top_logprobs[0])


def compared(session: Session, pairs: Pairs, expected: list[torch.Tensor], sudokus: int) -> str:
    """The end of a table's row: KL, agreement, Sudoku score, steps a canvas."""
    found = [log_probabilities(session, *pair) for pair in pairs]
    both = list(zip(expected, found, strict=True))
    kl = torch.cat([(e.exp() * (e - f)).sum(-1) for e, f in both]).mean()
    same = torch.cat([e.argmax(-1) == f.argmax(-1) for e, f in both]).float().mean()
    options = EvalOptions(count=sudokus, tasks=("sudoku",), one_shot=False)
    (score,) = [s for s in evaluate(SessionAnswerer(session), options) if s.mode == REFINED]
    return f"{float(kl):.5f} | {float(same):.4f} | {score.share:.3f} | {score.steps_per_canvas:.2f} |"


def formats(args: argparse.Namespace, pairs: Pairs) -> None:
    reference = canvaslm.load(args.model)
    expected = [log_probabilities(reference, *pair) for pair in pairs]
    print(
        "| type | MB | KL, nats a place | same argmax | Sudoku | steps a canvas |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for kind in (None, *TYPES):
            path = Path(scratch) / f"{kind}.gguf"
            if kind is not None:
                write_gguf(open_source(Path(args.model)), path, kind)
            session = canvaslm.load(path, dtype="float32" if args.plain else None) if kind else reference
            size = path.stat().st_size if kind else sum(f.stat().st_size for f in Path(args.model).iterdir())
            row = compared(session, pairs, expected, args.sudokus)
            print(f"| {kind or 'fp32'} | {size / 1e6:.1f} | {row}", flush=True)


def kv_types(args: argparse.Namespace, pairs: Pairs) -> None:
    """Each against the same weights with the most exact keys and values they can have."""
    print(
        "| weights | --kv-type | KL, nats a place | same argmax | Sudoku | steps a canvas |\n"
        "|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "Q8_0.gguf"
        write_gguf(open_source(Path(args.model)), packed, "Q8_0")
        for name, path, types in (
            ("fp32, plain torch", args.model, ("float32", "bfloat16", "int8")),
            ("Q8_0, native", packed, (None, "int8")),
        ):
            best = canvaslm.load(path, kv_type=types[0])
            expected = [log_probabilities(best, *pair) for pair in pairs]
            for kind in types:
                row = compared(canvaslm.load(path, kv_type=kind), pairs, expected, args.sudokus)
                print(f"| {name} | {kind or 'default (16-bit)'} | {row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default=str(MODEL_FOLDER))
    parser.add_argument("-n", type=int, default=20, help="items a task for KL and agreement")
    parser.add_argument("--sudokus", type=int, default=200)
    parser.add_argument("--plain", action="store_true", help="unpack the weights to fp32")
    parser.add_argument("--kv", action="store_true", help="compare types of keys and values, not of weights")
    args = parser.parse_args()
    (kv_types if args.kv else formats)(args, noisy_canvases(args.n))


if __name__ == "__main__":
    main()
