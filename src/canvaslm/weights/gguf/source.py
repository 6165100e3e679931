"""The two kinds of checkpoint that can be written as GGUF: a safetensors folder and another GGUF file.

What the folder's own files say becomes the metadata that llama.cpp's converter would write: sizes from
config.json, sampling defaults from generation_config.json as `diffusion.eb_*`, the vocabulary from
tokenizer.json, the template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import NotFound
from ...model.config import ModelConfig
from ...model.registry import family_of
from ..generation import sampling_defaults, stop_tokens
from ..loading.plan import make_plan
from ..resolve import Checkpoint, read_config, resolve
from ..safetensors_.file import TensorFile
from ..safetensors_.header import SafetensorsInfo, read_header
from .fields import ENTROPY_BOUND, GENERATION_KEYS, architecture
from .file import GGUFFile
from .places import gguf_names
from .vocab import vocabulary_metadata
from .write import (
    bools,
    f32,
    flag,
    i32s,
    string,
    u32,
)

__all__ = [
    "FolderSource",
    "GGUFSource",
    "config_metadata",
    "generation_metadata",
    "open_source",
    "table_values",
]

_COPY_BYTES = 16 << 20
_STORED: dict[str, Callable[[Any], bytes]] = {
    "string": string,
    "u32": u32,
    "f32": f32,
    "flag": flag,
    "bools": bools,
    "i32s": i32s,
}
# Keys that describe one stored form of the model and must not be carried into another.
_NOT_CARRIED = ("general.file_type", "general.quantization_version", "general.alignment", "split.")


def open_source(model: str | Path) -> FolderSource | GGUFSource:
    """A source for whatever `resolve` finds. Raises as `resolve` and the readers do."""
    checkpoint = resolve(model)
    if checkpoint.kind == "gguf":
        return GGUFSource(checkpoint.files[0])
    return FolderSource(checkpoint)


class GGUFSource:
    """A GGUF file, any of whose tensors may be packed anew. Metadata are carried over unchanged."""

    def __init__(self, path: Path) -> None:
        self.file = GGUFFile(path)
        architecture(self.file)
        self.paths = tuple(self.file.paths)
        self.notes: list[str] = []
        self.shapes = {name: info.shape for name, info in self.file.tensors.items()}
        self.metadata = {
            key: self.file.raw_value(key) for key in self.file.metadata if not key.startswith(_NOT_CARRIED)
        }

    @property
    def stored_type(self) -> str:
        """The format most bytes are in."""
        sizes: dict[str, int] = {}
        for info in self.file.tensors.values():
            sizes[info.format] = sizes.get(info.format, 0) + info.nbytes
        return max(sizes, key=lambda name: sizes[name])

    def packed(self, name: str, format: str) -> Iterator[memoryview] | None:
        return self._copy(name) if self.file.info(name).format == format else None

    def _copy(self, name: str) -> Iterator[memoryview]:
        raw = self.file.tensor(name).raw.numpy()
        for start in range(0, len(raw), _COPY_BYTES):
            yield raw[start : start + _COPY_BYTES].data
        self.file.release(name)

    def slices(self, name: str, rows: int) -> Iterator[Tensor]:
        tensor = self.file.tensor(name)
        for start in range(0, tensor.row_count, rows):
            yield tensor.rows(start, min(tensor.row_count, start + rows)).dequantise()
        self.file.release(name)


class FolderSource:
    """A safetensors checkpoint: every tensor checked against config.json before anything is written."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = read_config(checkpoint)
        headers = [read_header(path) for path in checkpoint.files]
        theirs, shapes = gguf_names(self.config), family_of(self.config).names.weight_shapes(self.config)
        plan = make_plan(checkpoint, headers, self.config)
        self.notes = plan.notes
        self.paths = checkpoint.files
        self._headers = {header.path: header for header in headers}
        self._infos: dict[str, SafetensorsInfo] = {}
        self._tables = table_values(self.config)
        self.shapes: dict[str, tuple[int, ...]] = {name: (len(t),) for name, t in self._tables.items()}
        for name in sorted(plan.weights, key=theirs.order):
            self._infos[theirs.to_gguf(name)] = plan.weights[name]
            self.shapes[theirs.to_gguf(name)] = shapes[name]
        self.metadata = _folder_metadata(checkpoint, self.config)

    @property
    def stored_type(self) -> str:
        """The type of the largest tensor, as a file type."""
        largest = max(self._infos.values(), key=lambda info: info.nbytes)
        return largest.dtype if largest.dtype in ("BF16", "F16") else "F32"

    def packed(self, name: str, format: str) -> Iterator[memoryview] | None:
        return None

    def slices(self, name: str, rows: int) -> Iterator[Tensor]:
        if name in self._tables:
            yield self._tables[name].unsqueeze(0)
            return
        info = self._infos[name]
        with TensorFile(self._headers[info.path]) as file:
            yield from _by_rows(file.slices(info.name), self.shapes[name][-1], rows)


def _by_rows(pieces: Iterator[tuple[int, Tensor]], columns: int, rows: int) -> Iterator[Tensor]:
    """Flat pieces of any length -> fp32 [up to `rows`, columns]; what a piece leaves
    over goes before the next."""
    rest = torch.empty(0)
    for _, piece in pieces:
        flat = torch.cat([rest, piece.float()])
        whole = len(flat) // columns * columns
        yield from torch.split(flat[:whole].view(-1, columns), rows)
        rest = flat[whole:]


def table_values(config: ModelConfig) -> dict[str, Tensor]:
    """Tensors of the file that follow from the sizes, fp32 [n] by GGUF name."""
    return {name: torch.tensor(values) for name, values in gguf_names(config).tables(config).items()}


def config_metadata(config: ModelConfig, name: str) -> dict[str, bytes]:
    """The model's sizes under llama.cpp's keys."""
    theirs = gguf_names(config)
    return {
        "general.architecture": string(theirs.architectures[0]),
        "general.type": string("model"),
        "general.name": string(name),
        **{key: _STORED[kind](value) for key, (kind, value) in theirs.config_metadata(config).items()},
    }


def generation_metadata(generation: Mapping[str, Any]) -> dict[str, bytes]:
    """The sampling defaults of a generation_config.json as `diffusion.eb_*`; only those it sets."""
    chosen, _ = sampling_defaults(generation)
    out = {}
    for key, (name, kind) in GENERATION_KEYS.items():
        if name in chosen:
            out[key] = u32(chosen[name]) if kind is int else f32(chosen[name])
    if "entropy_bound" in chosen:
        out[ENTROPY_BOUND] = f32(chosen["entropy_bound"])
    return out


def _folder_metadata(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, bytes]:
    generation = checkpoint.read_json("generation_config.json") or {}
    tokenizer = checkpoint.read_json("tokenizer.json")
    if tokenizer is None:
        raise NotFound(
            f"{checkpoint.source}: there is no tokenizer.json, and a GGUF file needs the vocabulary"
        )
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    template = _chat_template(checkpoint, settings)
    stops = stop_tokens(generation, config.eos_token_ids)
    return (
        config_metadata(config, checkpoint.folder.resolve().name)
        | generation_metadata(generation)
        | vocabulary_metadata(tokenizer, settings, config, stops, where=f"{checkpoint.source}/tokenizer.json")
        | ({"tokenizer.chat_template": string(template)} if template else {})
    )


def _chat_template(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str | None:
    path = checkpoint.path("chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None
