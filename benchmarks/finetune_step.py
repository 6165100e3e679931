#!/usr/bin/env python
"""A step of LoRA training through a quantised base: seconds, memory, and that the loss falls.

    canvaslm synth big.gguf --shape 26b && python benchmarks/finetune_step.py big.gguf --steps 5

One example of random tokens, the same times, noise and coin in every step; layers are recomputed on the way
back. `--plain` takes PyTorch's layers, which unpack weights as they need them, instead of the kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
import time
from dataclasses import dataclass

import torch

from canvaslm.ops import backend, plain
from canvaslm.train.data import TrainingExample
from canvaslm.train.settings import Settings, settings_from_dict
from canvaslm.train.sft import Trainer
from canvaslm.weights.gguf.load import load_quantised


@dataclass(frozen=True)
class One:
    """A source of the same example again and again."""

    only: TrainingExample

    def example(self, seed: int, index: int) -> TrainingExample:
        return self.only


def settings(folder: str, options: argparse.Namespace) -> Settings:
    return settings_from_dict(
        {
            "run": {"folder": folder, "steps": options.steps, "recompute": True},
            "model": {"base": "unused"}, "data": {"source": "unused", "batch": 1, "micro_batch": 1},
            "optim": {"lr": options.lr, "warmup": 0}, "objective": {"self_conditioning": 1.0},
            "lora": {"rank": options.rank, "targets": options.targets.split(","), "phases": options.phases},
        }
    )  # fmt: skip


def gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a quantised GGUF file")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--answer", type=int, default=256, help="tokens")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--targets", default="attention,mlp")
    parser.add_argument("--phases", default="both", choices=("both", "denoise"))
    parser.add_argument("--plain", action="store_true", help="PyTorch's layers instead of the kernels")
    options = parser.parse_args()
    with backend.only(plain.BACKEND) if options.plain else contextlib.nullcontext(), backend.differentiable():
        model = load_quantised(options.model).model
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, model.config.vocab_size, (options.prompt + options.answer,), generator=draws)
    ids = tuple(tokens.tolist())
    example = TrainingExample(ids[: options.prompt], ids[options.prompt :])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, One(example), settings(folder, options))
        trained = sum(p.numel() for p in trainer.trained.parameters())
        print(f"{trained:,} parameters on {options.targets}; {gigabytes():.1f} GB before the first step")
        for step in range(options.steps):
            trainer.step = 0  # the same draws again
            begin = time.monotonic()
            figures, _, _ = trainer.train_step()
            print(
                f"step {step + 1}: {time.monotonic() - begin:.1f} s, canvas {figures['canvas']:.4f}, "
                f"encoder {figures['encoder']:.4f}, gradient {figures['gradient']:.3g}, "
                f"peak {gigabytes():.1f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
