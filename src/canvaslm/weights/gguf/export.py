"""From a GGUF file back to a safetensors folder: Hugging Face names, config.json, tokenizer and template."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...files import check_output_folder, write_text
from ...model.names import WeightNames
from ...model.registry import family_of
from ..folder import new_folder
from ..resolve import INDEX
from ..safetensors_.file import save_file
from .fields import read_gguf_config, read_gguf_generation, read_tokenizer
from .file import GGUFFile
from .places import Places, place_weights
from .vocab import tokenizer_json, tokenizer_settings
from .write import check_disk

__all__ = ["EXPORT_DTYPES", "export_folder"]

# A shard is held in memory while it is written. The largest tensor of the 26B model has 1.5 GB in bfloat16.
SHARD_BYTES = 2 * 10**9

EXPORT_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

Shard = list[str]


def export_folder(
    source: Path,
    out: Path,
    *,
    kind: str | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Unpacks a GGUF checkpoint into the folder `out` that transformers and canvaslm load.

    `kind` is F32, BF16 or F16; None is what the embedding is stored in, BF16 when that is quantised. Peak
    memory is one shard. Raises UsageError when `out` is not empty (unless `force`) or its disk too full,
    BadModelFile for a bad file.
    """
    check_output_folder(out, force=force)
    with GGUFFile(source) as file:
        config = read_gguf_config(file)
        names = family_of(config).names
        shapes = names.weight_shapes(config)
        places = place_weights(file, config)
        dtype = _dtype(file, kind)
        out.parent.mkdir(parents=True, exist_ok=True)
        check_disk(out, sum(prod(shape) for shape in shapes.values()) * dtype.itemsize)
        with new_folder(out, force=force) as made:
            fields = config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
            documents = {"config.json": fields, "generation_config.json": read_gguf_generation(file)}
            _write_documents(made, documents)
            _write_tokenizer(made, file)
            shards = _shards(shapes, dtype.itemsize, shard_bytes)
            _write_shards(
                made, shards, _DequantisingReader(file, places, dtype, progress), names,
                config.tie_word_embeddings,
            )  # fmt: skip
    return out


def _dtype(file: GGUFFile, kind: str | None) -> torch.dtype:
    if kind is None:
        kind = file.info("token_embd.weight").format
        return EXPORT_DTYPES.get(kind, torch.bfloat16)
    if kind not in EXPORT_DTYPES:
        raise UsageError(f"type {kind!r}: a folder holds {', '.join(EXPORT_DTYPES)}", param="type")
    return EXPORT_DTYPES[kind]


class _DequantisingReader:
    """Unpacks one weight after another, counting the bytes read."""

    def __init__(
        self,
        file: GGUFFile,
        places: Places,
        dtype: torch.dtype,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.file, self.places, self.dtype, self.progress = file, places, dtype, progress
        self.total = sum(info.nbytes for info in file.tensors.values())
        self.done = 0

    def read(self, name: str) -> Tensor:
        parts = self.places.sources[self.places.stand_ins.get(name, name)]
        tensors = [self._one(part) for part in parts]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)

    def _one(self, name: str) -> Tensor:
        values = self.file.tensor(name).dequantise(self.dtype)
        self.file.release(name)
        self.done += self.file.info(name).nbytes
        if self.progress is not None:
            self.progress(name, min(self.done, self.total), self.total)
        return values


def _shards(shapes: dict[str, tuple[int, ...]], width: int, limit: int) -> list[Shard]:
    shards: list[Shard] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = prod(shape) * width
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _write_shards(
    folder: Path, shards: list[Shard], reader: _DequantisingReader, names: WeightNames, tied: bool
) -> None:
    metadata = {"format": "pt"}
    weight_map: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(shards, 1):
        tensors = dict(_named(shard, reader, names, tied))
        name = (
            f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        save_file(folder / name, tensors, metadata)
        weight_map.update(dict.fromkeys(tensors, name))
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        _write_documents(folder, {INDEX: {"metadata": {"total_size": size}, "weight_map": weight_map}})


def _named(
    shard: Shard, reader: _DequantisingReader, names: WeightNames, tied: bool
) -> Iterator[tuple[str, Tensor]]:
    """Each weight under every name transformers wants it by: untied models hold the encoder's copies too."""
    for name in shard:
        tensor = reader.read(name)
        for hf_name in (names.to_hf(name), *(() if tied else names.copies_of(name))):
            yield hf_name, tensor


def _write_documents(folder: Path, documents: dict[str, dict[str, Any]]) -> None:
    for name, content in documents.items():
        write_text(folder / name, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _write_tokenizer(folder: Path, file: GGUFFile) -> None:
    if "tokenizer.ggml.model" not in file.metadata:
        return
    fields = read_tokenizer(file)
    text = json.dumps(tokenizer_json(fields), ensure_ascii=False)
    write_text(folder / "tokenizer.json", text)
    _write_documents(folder, {"tokenizer_config.json": tokenizer_settings(fields)})
    if fields.chat_template:
        write_text(folder / "chat_template.jinja", fields.chat_template)
