"""Writes a model as a folder that transformers (and canvaslm) loads: Hugging Face names,
safetensors, config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...files import atomic, write_text
from ...model.config import ModelConfig
from ...model.names import WeightNames
from ...model.registry import family_of, family_of_type
from ..folder import new_folder
from ..resolve import INDEX, inside
from .file import save_file

SHARD_BYTES = 5 * 10**9


def save_folder(
    model: nn.Module,
    config: ModelConfig | Mapping[str, Any],
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_size: int = SHARD_BYTES,
    generation: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    files: Mapping[str, bytes | Path] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes `out`: model.safetensors (or numbered shards and their index),
    config.json and what else is given.

    `dtype` converts the weights on the way, slice by slice; None keeps theirs. `shard_size` is in bytes.
    `generation` becomes generation_config.json; `extra` are further tensors by Hugging Face name (a vision
    tower); `files` are further files (tokenizer, template, card) by plain name. Everything is written to a
    folder beside `out` first and moved there at the end, so that a crash leaves no half-written model. Untied
    models are written with the encoder's weights again, since that is how transformers reads them.

    Raises UsageError if `out` is not empty and `overwrite` is false, and else as `folder.new_folder`.
    """
    out = Path(out)
    fields = dict(config if isinstance(config, Mapping) else config.to_dict())
    names = (
        family_of_type(fields.get("model_type")) if isinstance(config, Mapping) else family_of(config)
    ).names
    tensors = _tensors(model, names, tied=bool(fields.get("tie_word_embeddings", True)))
    tensors.update(extra or {})
    fields["dtype"] = str(dtype or model.get_parameter(names.embedding).dtype).removeprefix("torch.")
    with new_folder(out, force=overwrite) as made:
        _write_weights(made, tensors, dtype, shard_size)
        _write_json(made / "config.json", fields)
        if generation is not None:
            _write_json(made / "generation_config.json", generation)
        for file_name, content in (files or {}).items():
            _write_file(inside(made, file_name), content)
    return out


def _tensors(model: nn.Module, names: WeightNames, tied: bool) -> dict[str, Tensor]:
    """Our weights under every name transformers wants them by."""
    named: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if names.place_of(names.to_hf(name)).name != name:
            raise UsageError(f"weight {name!r} has no name in a checkpoint; merge adapters before exporting")
        for hf_name in (names.to_hf(name), *(() if tied else names.copies_of(name))):
            named[hf_name] = tensor
    return named


def _write_weights(
    folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, shard_size: int
) -> None:
    # transformers reads the framework from the metadata.
    metadata = {"format": "pt"}
    shards = _shards(tensors, dtype, shard_size)
    if len(shards) == 1:
        save_file(folder / "model.safetensors", shards[0], metadata, dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(folder / file_name, shard, metadata, dtype)
        weight_map.update(dict.fromkeys(shard, file_name))
    total = sum(_size(tensor, dtype) for tensor in tensors.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, split so that no shard exceeds `limit` bytes unless one tensor does."""
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = _size(tensor, dtype)
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def _size(tensor: Tensor, dtype: torch.dtype | None) -> int:
    width = dtype.itemsize if dtype is not None and tensor.is_floating_point() else tensor.element_size()
    return tensor.numel() * width


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def _write_file(path: Path, content: bytes | Path) -> None:
    with atomic(path) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file)


__all__ = ["SHARD_BYTES", "save_folder"]
