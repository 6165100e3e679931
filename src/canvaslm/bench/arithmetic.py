"""How much work a pass is: multiply-accumulates by part, and the bytes of weights that it reads.

Counted from the configuration, for the algorithm as it stands: nothing for norms, activations and softmax.
The soft embedding counts as the dense product, also where a kernel skips what has no mass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..model import Model, ModelConfig
from ..model.registry import family_of
from ..model.work import (
    ATTENTION,
    DENSE,
    EXPERTS,
    GLUE,
    HEAD,
    PARTS,
    PROJECTIONS,
    REST,
    SELF,
    Work,
)
from ..ops.cpu.repacked import RepackedExperts, RepackedMatrix, RowTable
from ..ops.formats.quant_tensor import QuantTensor


def denoise_macs(config: ModelConfig, context: int) -> dict[str, int]:
    """Multiply-accumulates of one step of one canvas against `context` tokens, with self-conditioning."""
    c, places, kinds = config, config.canvas_length, work_of(config)
    work = dict.fromkeys(PARTS, 0)
    for layer in range(c.num_layers):
        window = c.window_of(layer)
        seen = context if window is None else min(context, window - 1)
        _add(work, kinds.layer_macs(c, layer, places, places * (seen + places)))
    work[HEAD] = places * c.vocab_size * c.hidden_size
    if c.facts.self_conditioning:
        work[SELF] = places * (c.hidden_size * c.vocab_size + kinds.self_macs(c))
    return work


def encode_macs(config: ModelConfig, start: int, count: int) -> dict[str, int]:
    """Multiply-accumulates of encoding `count` tokens behind `start` others; the last
    layer stops at its keys."""
    c, kinds = config, work_of(config)
    work = dict.fromkeys(PARTS, 0)
    for layer in range(c.num_layers - 1):
        window = c.window_of(layer) or start + count
        pairs = sum(min(position + 1, window) for position in range(start, start + count))
        _add(work, kinds.layer_macs(c, layer, count, pairs))
    work[PROJECTIONS] += count * c.hidden_size * kinds.key_width(c, c.num_layers - 1)
    return work


def work_of(config: ModelConfig) -> Work:
    """How the layers of a family work. Raises UsageError for a family whose parts are not measured."""
    family = family_of(config)
    if family.work is None:
        raise UsageError(f"the parts of models of type {family.name} are not measured")
    return family.work()


def _add(work: dict[str, int], more: Mapping[str, int]) -> None:
    for part, count in more.items():
        work[part] += count


@dataclass(frozen=True)
class Held:
    """Bytes of weights: in memory of this process, and where a file lies mapped (a GGUF
    file's rows, a packed file)."""

    memory: int = 0
    file: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.memory + other.memory, self.file + other.file)

    @property
    def total(self) -> int:
        return self.memory + self.file


def held(thing: Any) -> Held:
    """Bytes of all weights below a module or an object, shared ones once."""
    return sum(dict(_pieces(thing, set())).values(), Held())


def is_packed(thing: Any) -> bool:
    """Whether any weight below is packed for the native kernels."""
    return any(key[0] == "packed" for key, _ in _pieces(thing, set()))


def _pieces(thing: Any, seen: set[int]) -> Iterator[tuple[tuple[str, int], Held]]:
    """(identity, bytes) of each weight; objects are searched through modules, containers and dataclasses."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, RepackedMatrix | RepackedExperts):
        lent = thing.memory is not None
        yield ("packed", thing.data), Held(file=thing.nbytes) if lent else Held(memory=thing.nbytes)
    elif isinstance(thing, QuantTensor | RowTable):
        yield ("raw", thing.raw.data_ptr()), Held(file=thing.raw.numel())
    elif isinstance(thing, torch.Tensor):
        yield ("tensor", thing.data_ptr()), Held(memory=thing.numel() * thing.element_size())
    else:
        for inner in _inside(thing):
            yield from _pieces(inner, seen)


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, nn.Module):
        return [v for k, v in vars(thing).items() if not k.endswith("_hooks")]
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple):
        return list(thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return [getattr(thing, f.name) for f in fields(thing)]
    return []


def weight_bytes(model: Model, tokens: int) -> dict[str, int]:
    """Bytes of weights that a denoise pass over `tokens` places (all rows together) reads once, by part.

    Of the experts: as many as that many tokens are expected to choose, were their choices even. The attention
    part reads keys and values, which are not counted.
    """
    c = model.config
    active, experts = c.active_experts()
    chosen = 1 - (1 - active / experts) ** tokens
    bytes_of = dict.fromkeys(PARTS, 0)
    for module, part in work_of(c).modules(model):
        size = held(module).total
        bytes_of[part] += int(size * chosen) if part == EXPERTS else size
    bytes_of[HEAD] = _table_bytes(model.head)
    if model.self_conditioning is not None:
        bytes_of[SELF] = held(model.self_conditioning).total + _table_bytes(model.embedding, "transposed")
    return bytes_of


def _table_bytes(table: Any, wanted: str = "head") -> int:
    """One reading of a vocabulary: of the copy called `wanted` where the table holds
    several, else of the largest."""
    named = [size.total for key, size in _named(table, wanted, set())]
    sizes = named or [size.total for _, size in _pieces(table, set())]
    return max(sizes, default=0)


def _named(thing: Any, name: str, seen: set[int]) -> Iterator[tuple[Any, Held]]:
    """Weights found under an attribute of this name, at any depth."""
    if id(thing) in seen or isinstance(thing, torch.Tensor | RepackedMatrix | RepackedExperts):
        return
    seen.add(id(thing))
    attributes = getattr(thing, "__dict__", {})
    if attributes.get(name) is not None:
        yield from _pieces(attributes[name], set())
    for inner in _inside(thing):
        yield from _named(inner, name, seen)


__all__ = [
    "ATTENTION",
    "DENSE",
    "EXPERTS",
    "GLUE",
    "HEAD",
    "PARTS",
    "PROJECTIONS",
    "REST",
    "SELF",
    "Held",
    "denoise_macs",
    "encode_macs",
    "held",
    "is_packed",
    "weight_bytes",
    "work_of",
]
