"""Reads an adapter from whatever a user has: a folder that PEFT wrote, or a GGUF file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from ...errors import BadModelFile, NotFound
from ...model.adapters import Adapter
from ...model.config import ModelConfig
from .gguf import ExpertScales, read_gguf_adapter
from .peft import CONFIG, TENSORS, read_peft

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def adapter_kind(path: str | os.PathLike[str]) -> tuple[Literal["peft", "gguf"], Path]:
    """What an adapter is stored as, and where: PEFT's folder, or a GGUF file. A folder with one GGUF file and
    nothing of PEFT's stands for that.

    Raises NotFound where there is nothing, BadModelFile for what is no adapter.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        ggufs = sorted(entry for entry in found.iterdir() if entry.suffix.lower() == ".gguf")
        if len(ggufs) == 1 and not any(os.path.lexists(found / name) for name in (CONFIG, TENSORS)):
            return "gguf", ggufs[0]
        return "peft", found
    if not found.exists():
        raise NotFound(f"{path}: there is no such file or folder; an adapter is PEFT's folder or a GGUF file")
    if found.suffix.lower() == ".gguf":
        return "gguf", found
    if found.name in (CONFIG, TENSORS):
        return "peft", found.parent
    if found.suffix.lower() in _PICKLES:
        raise BadModelFile(
            f"{path}: is a pickle, which canvaslm never loads, since that runs code; save the adapter as "
            "safetensors where you trust it (PEFT: model.save_pretrained(folder))"
        )
    raise BadModelFile(f"{path}: is no adapter; give a folder with {CONFIG} and {TENSORS}, or a .gguf file")


def read_adapter(
    path: str | os.PathLike[str], config: ModelConfig, scales: ExpertScales | None = None
) -> Adapter:
    """The adapter at `path` for a model of these sizes, on the CPU.

    `scales`: the base's `layers.N.router.per_expert_scale`, such as its `state_dict` holds; GGUF files with
    experts' down projections need them. Raises as `adapter_kind`, `read_peft` and `read_gguf_adapter` do.
    """
    kind, place = adapter_kind(path)
    return read_peft(place, config) if kind == "peft" else read_gguf_adapter(place, config, scales)


__all__ = ["adapter_kind", "read_adapter"]
