"""From a checkpoint to a model in memory, whatever its kind.

Nothing in a checkpoint runs: no pickle, and `auto_map` or any other name of code in a config is ignored.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...errors import UsageError
from ..gguf.load import load_gguf
from ..resolve import Checkpoint, resolve
from ..safetensors_.load import load_safetensors
from .loaded import Loaded, Progress


def load_model(
    source: str | Path | Checkpoint | None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
    check_finite: bool | None = None,
) -> Loaded:
    """Loads a model from whatever `resolve` takes.

    `dtype` None: on a CPU float32 for models below 10^9 parameters, otherwise the type most of the
    checkpoint's bytes have; quantised GGUF files stay quantised (see `load_gguf`). `check_finite` None: every
    value below 10^8 parameters, above all small tensors and a sample of the large. Peak memory is the weights
    plus one slice of 16 MiB.

    Raises NotFound, Offline, BadConfig, BadModelFile (one error lists every tensor that is missing, left over
    or of the wrong shape or dtype; another names the first with NaN or Inf), OutOfMemory with both numbers
    before reading, UsageError for an impossible device or dtype.
    """
    checkpoint = source if isinstance(source, Checkpoint) else resolve(source)
    target = _device(device)
    if checkpoint.kind == "gguf":
        return load_gguf(checkpoint, device=target, dtype=dtype, progress=progress)
    return load_safetensors(
        checkpoint, device=target, dtype=dtype, progress=progress, check_finite=check_finite
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f"device {device!r} is not known; use cpu, cuda or cuda:N", param="device"
        ) from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: torch sees no CUDA GPU here; use --device cpu", param="device")
    return target


__all__ = ["load_model"]
