"""`canvaslm synth OUT`: a GGUF file of random weights, for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Argument(help="The .gguf file to write.")],
    shape: Annotated[
        str, typer.Option("--shape", help="26b (the true sizes, 16.8 GB in Q4_K_M) or small (233 MB).")
    ] = "small",
    type: Annotated[
        str, typer.Option("--type", help="BF16, F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or Q4_0.")
    ] = "Q4_K_M",
    layers: Annotated[
        int | None, typer.Option("--layers", help="Only so many layers, the last of them a full one.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A GGUF file to take the vocabulary from.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Chooses the weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the size, write nothing.")] = False,
) -> None:
    """Write a model of random weights with the layout of a real one. It answers nonsense, at real speed.

    Examples:
      canvaslm synth random.gguf --shape 26b --dry-run
      canvaslm synth random.gguf --layers 2
    """
    from ..weights.loading.memory import gigabytes
    from ..weights.synth import plan_synth, write_synth
    from .quantize import progress_bar

    plan = plan_synth(shape.lower(), type.upper(), tokenizer=tokenizer, layers=layers)
    if not dry_run:
        with progress_bar("writing") as progress:
            write_synth(plan, out, seed=seed, force=force, progress=progress)
    print(f"{out}: {shape} in {plan.kind}, {len(plan.tensors)} tensors, {gigabytes(plan.size)}")


__all__ = ["command"]
