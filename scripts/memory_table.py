#!/usr/bin/env python3
"""Writes README's table of which file fits which memory anew, from the formats and
the shape of the 26B model.

A file is planned as `canvaslm synth --shape 26b` would write it, and then laid out as loading it
would, without a weight being written: the header alone on a file of the right length, which
takes no room on the disk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

from canvaslm.ops import cpu
from canvaslm.ops.cpu import repacked
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.gguf.load import weights_in_memory
from canvaslm.weights.gguf.write import header_bytes
from canvaslm.weights.synth import SynthPlan, plan_synth

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- memory: begin, written by scripts/memory_table.py -->"
END = "<!-- memory: end -->"
TYPES = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16")
RUNNING = 2.0  # GiB beside the weights: one answer's context and work (0.9 measured) and the system
MACHINES = (16, 24, 32, 48, 64, 96)  # GB


def table() -> str:
    """The table, between its marker lines."""
    rows = ["| file | on disk | weights in memory | a machine with |", "|---|---|---|---|"]
    for kind in TYPES:
        plan = plan_synth("26b", kind)
        needed = memory_of(plan) / 2**30
        machine = next(size for size in MACHINES if size * 1e9 / 2**30 >= needed + RUNNING)
        rows.append(f"| {kind} | {plan.size / 1e9:.1f} GB | {needed:.1f} GiB | {machine} GB |")
    return "\n".join([BEGIN, *rows, END])


def memory_of(plan: SynthPlan) -> int:
    """Bytes of weights once a file of this plan is loaded on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planned.gguf"
        with path.open("wb") as file:
            file.write(header_bytes(plan.metadata, plan.tensors))
            file.truncate(plan.size)
        # Weights take the most where dense matrices become INT8: the table shall hold on every processor, and
        # shall not depend on the one that wrote it.
        with GGUFFile(path) as header, patch.object(repacked, "isa", return_value="avx512"):
            return weights_in_memory(header, plan.config)


def page_with_table(text: str) -> str:
    """A page with what stands between its marker lines written anew."""
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:begin] + table() + text[end:]


if __name__ == "__main__":
    assert cpu.available(), f"the native kernels decide how weights lie in memory: {cpu.problem()}"
    README.write_text(page_with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(README)


__all__ = ["README", "page_with_table", "table"]
