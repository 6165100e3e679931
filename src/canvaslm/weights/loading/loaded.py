"""What every loader of weights takes and gives: a progress report, the names of
types, and the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...model.config import ModelConfig
from ...model.protocol import Model

# progress(bytes read so far, bytes to read)
Progress = Callable[[int, int], None]

# Below this many parameters a CPU computes in fp32 whatever the file holds: it is exact
# and, on most CPUs, faster.
SMALL_MODEL = 10**9

DTYPE_WORDS = {
    "float32": torch.float32, "fp32": torch.float32, "f32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16, "f16": torch.float16,
}  # fmt: skip


@dataclass
class Loaded:
    """A model ready to run, in eval mode. `generation` is generation_config.json's
    content, {} without one."""

    model: Model
    config: ModelConfig
    generation: dict[str, Any]
    folder: Path | None
    notes: list[str] = field(default_factory=list)


__all__ = ["DTYPE_WORDS", "SMALL_MODEL", "Loaded", "Progress"]
