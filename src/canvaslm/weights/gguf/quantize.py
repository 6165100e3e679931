"""Which tensor gets which format, and the stream that packs one checkpoint into a GGUF file.

The rules are llama.cpp's (`llama_tensor_get_type` in llama-quant.cpp), so that a file made here has the types
of one made there. Peak memory is one slice of a tensor (64 MB), whatever the model's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...errors import BadModelFile, UsageError
from ...ops.formats.quant_tensor import FORMATS, dequantise, quantise
from .write import GGUFWriter, PlannedTensor, u32

__all__ = [
    "FILE_TYPES",
    "SLICE_ROWS_BYTES",
    "TensorReport",
    "TensorSource",
    "Written",
    "choose_formats",
    "pack_gguf",
    "write_gguf",
]

# fp32 bytes of a slice of rows on its way through.
SLICE_ROWS_BYTES = 16 << 20


@dataclass(frozen=True)
class FileType:
    """A kind of file: `file_type` is llama.cpp's number, `base` the format of most
    tensors, `mix` the "_M" rules."""

    file_type: int
    base: str
    mix: bool = False


FILE_TYPES = {
    "F32": FileType(0, "F32"),
    "BF16": FileType(32, "BF16"),
    "F16": FileType(1, "F16"),
    "Q8_0": FileType(7, "Q8_0"),
    "Q6_K": FileType(18, "Q6_K"),
    "Q5_K_M": FileType(17, "Q5_K", mix=True),
    "Q4_K_M": FileType(15, "Q4_K", mix=True),
    "Q4_0": FileType(2, "Q4_0"),
}

# Rows that a block does not divide: the nearest format of at least as many bits with smaller blocks.
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def choose_formats(shapes: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, str]:
    """GGUF tensor name -> format for a file of type `kind`; shapes in torch order, names in file order.

    Raises UsageError for a type that is not written.
    """
    if kind not in FILE_TYPES:
        raise UsageError(f"type {kind!r} is not written; known: {', '.join(FILE_TYPES)}", param="type")
    rule = FILE_TYPES[kind]
    values = [name for name in shapes if name.endswith("attn_v.weight")]
    layers = 1 + max((_layer(name) for name in shapes), default=0)
    chosen = {}
    for name, shape in shapes.items():
        wanted = rule.base
        if _stays_f32(name, shape):
            wanted = "F32"
        elif FORMATS[rule.base].block > 1:
            wanted = _mixed(name, rule, values, layers, head="output.weight" in shapes)
        chosen[name] = _fitting(wanted, shape[-1])
        if _is_head(name, head="output.weight" in shapes) and chosen[name] not in (wanted, "F32"):
            chosen[name] = _fitting("Q8_0", shape[-1])
    return chosen


def _stays_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Vectors, norms and the router, which is tiny and decides which experts run."""
    return len(shape) < 2 or name.endswith(("_norm.weight", "ffn_gate_inp.weight", ".scale"))


def _mixed(name: str, rule: FileType, values: list[str], layers: int, head: bool) -> str:
    """The format before fallbacks: more bits for the head, and in "_M" files for some
    values and down projections."""
    if _is_head(name, head) and rule.base != "Q8_0":
        return "Q6_K"
    if rule.mix and name in values and _more_bits(values.index(name), len(values)):
        return "Q6_K"
    if rule.mix and "ffn_down" in name and _more_bits(_layer(name), layers):
        return "Q6_K"
    return rule.base


def _is_head(name: str, head: bool) -> bool:
    return name == ("output.weight" if head else "token_embd.weight")


def _more_bits(i: int, n: int) -> bool:
    """The first and the last eighth, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _layer(name: str) -> int:
    number = name.split(".")[1] if name.startswith("blk.") else "0"
    return int(number) if number.isdigit() else 0


def _fitting(wanted: str, columns: int) -> str:
    for name in (wanted, _FALLBACK.get(wanted, "F16"), "F16"):
        if FORMATS[name].fits(columns):
            return name
    return "F32"


class TensorSource(Protocol):
    """A checkpoint to be written as GGUF: `shapes` by GGUF name in the order of writing,
    `metadata` ready encoded."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, bytes]
    paths: tuple[Path, ...]

    def packed(self, name: str, format: str) -> Iterator[memoryview] | None:
        """The tensor's bytes if it is in `format` already, so that they can be copied; else None."""

    def slices(self, name: str, rows: int) -> Iterator[Tensor]:
        """The tensor as fp32 [up to `rows`, columns] pieces, in order."""


@dataclass(frozen=True)
class TensorReport:
    """What became of a tensor. `error` is the RMS of the change relative to the RMS of the weights."""

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    error: float


@dataclass(frozen=True)
class Written:
    """The file that was written."""

    path: Path
    kind: str
    size: int
    tensors: tuple[TensorReport, ...]

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(t.nbytes for t in self.tensors) / sum(math.prod(t.shape) for t in self.tensors)

    @property
    def error(self) -> float:
        """The relative error of all weights together, each tensor counting by its size."""
        count = sum(math.prod(t.shape) for t in self.tensors)
        return math.sqrt(sum(t.error**2 * math.prod(t.shape) for t in self.tensors) / count)


# progress(tensor name, bytes written so far, bytes to write)
OnTensor = Callable[[str, int, int], None]


def write_gguf(
    source: TensorSource, out: Path, kind: str, *, force: bool = False, progress: OnTensor | None = None
) -> Written:
    """Packs `source` into a file of type `kind`, slice by slice.

    Raises UsageError (type, target, disk space) before anything is written, BadModelFile naming the tensor
    that holds NaN, infinities or values its format cannot hold; then no file is left behind.
    """
    formats = choose_formats(source.shapes, kind)
    metadata = {
        "general.file_type": u32(FILE_TYPES[kind].file_type),
        "general.quantization_version": u32(2),
    }
    return pack_gguf(source, out, formats, kind, metadata=metadata, force=force, progress=progress)


def pack_gguf(
    source: TensorSource,
    out: Path,
    formats: Mapping[str, str],
    kind: str,
    *,
    metadata: Mapping[str, bytes] | None = None,
    force: bool = False,
    progress: OnTensor | None = None,
) -> Written:
    """As `write_gguf`, with each tensor in the format that `formats` has for it; `kind` is what the file is
    called, `metadata` goes over the source's."""
    plan = [PlannedTensor(name, shape, formats[name]) for name, shape in source.shapes.items()]
    joined = source.metadata | dict(metadata or {})
    total, done = sum(tensor.nbytes for tensor in plan), 0
    reports = []
    with GGUFWriter(out, joined, plan, force=force, sources=source.paths) as writer:
        for tensor in plan:

            def on_bytes(count: int, name: str = tensor.name) -> None:
                nonlocal done
                done += count
                if progress is not None:
                    progress(name, done, total)

            reports.append(_write_tensor(source, tensor, writer, on_bytes))
    return Written(out, kind, writer.size, tuple(reports))


def _write_tensor(
    source: TensorSource, tensor: PlannedTensor, writer: GGUFWriter, on_bytes: Callable[[int], None]
) -> TensorReport:
    error = 0.0
    copied = source.packed(tensor.name, tensor.format)
    if copied is not None:
        for piece in copied:
            writer.write(piece)
            on_bytes(len(piece))
    else:
        rows = max(1, SLICE_ROWS_BYTES // (4 * tensor.shape[-1]))
        squares = torch.zeros(2, dtype=torch.float64)
        for values in source.slices(tensor.name, rows):
            packed = quantise(tensor.format, values)
            squares += _squares(source, tensor, values, packed)
            writer.write(packed.numpy().data)
            on_bytes(packed.numel())
        error = float((squares[0] / squares[1]).sqrt()) if squares[1] > 0 else 0.0
    return TensorReport(tensor.name, tensor.shape, tensor.format, tensor.nbytes, error)


def _squares(source: TensorSource, tensor: PlannedTensor, values: Tensor, packed: Tensor) -> Tensor:
    """Sums of squares of the change and of the values, fp64 [2]. Raises BadModelFile
    when they are not finite."""
    if not torch.isfinite(values).all():
        raise BadModelFile(
            f"{source.paths[0]}: tensor {tensor.name}: holds NaN or infinite weights; the source is broken"
        )
    if tensor.format == "F32":
        return torch.stack([torch.zeros(()), values.square().sum()]).double()
    change = dequantise(tensor.format, packed, values.shape) - values
    if not torch.isfinite(change).all():
        raise BadModelFile(
            f"{source.paths[0]}: tensor {tensor.name}: holds values too large for {tensor.format}; use BF16"
        )
    return torch.stack([change.double().square().sum(), values.double().square().sum()])
