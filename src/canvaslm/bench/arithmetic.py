"""How much work a pass is: multiply-accumulates by part, and the bytes of weights that it reads.

Counted from the configuration, for the algorithm as it stands: nothing for norms, activations and softmax.
The soft embedding counts as the dense product, also where a kernel skips what has no mass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from ..model import DiffusionGemma, ModelConfig
from ..model.diffusion_gemma.text import TextLayer
from ..ops.cpu.repacked import RepackedExperts, RepackedMatrix, RowTable
from ..ops.formats.quant_tensor import QuantTensor

PROJECTIONS, DENSE, EXPERTS, ATTENTION = "projections", "dense_mlp", "experts", "attention"
HEAD, SELF, GLUE, REST = "head_sampling", "self_conditioning", "glue", "rest"
PARTS = (PROJECTIONS, DENSE, EXPERTS, ATTENTION, HEAD, SELF, GLUE, REST)


def denoise_macs(config: ModelConfig, context: int) -> dict[str, int]:
    """Multiply-accumulates of one step of one canvas against `context` tokens, with self-conditioning."""
    c, places = config, config.canvas_length
    work = dict.fromkeys(PARTS, 0)
    for layer in range(c.num_layers):
        window = c.window_of(layer)
        seen = context if window is None else min(context, window - 1)
        _add_layer(work, c, layer, places, places * (seen + places))
    work[HEAD] = places * c.vocab_size * c.hidden_size
    work[SELF] = places * c.hidden_size * (c.vocab_size + 3 * c.intermediate_size)
    return work


def encode_macs(config: ModelConfig, start: int, count: int) -> dict[str, int]:
    """Multiply-accumulates of encoding `count` tokens behind `start` others; the last
    layer stops at its keys."""
    c = config
    work = dict.fromkeys(PARTS, 0)
    for layer in range(c.num_layers - 1):
        window = c.window_of(layer) or start + count
        pairs = sum(min(position + 1, window) for position in range(start, start + count))
        _add_layer(work, c, layer, count, pairs)
    work[PROJECTIONS] += count * c.hidden_size * _key_width(c, c.num_layers - 1)
    return work


def _add_layer(work: dict[str, int], c: ModelConfig, layer: int, tokens: int, pairs: int) -> None:
    """Adds one layer's work on `tokens`, of which queries and keys meet in `pairs`."""
    queries = c.num_heads * c.head_dim_of(layer)
    work[PROJECTIONS] += tokens * c.hidden_size * (2 * queries + _key_width(c, layer))
    work[ATTENTION] += 2 * pairs * queries
    work[DENSE] += 3 * tokens * c.hidden_size * c.intermediate_size
    work[EXPERTS] += 3 * tokens * c.top_k_experts * c.hidden_size * c.moe_intermediate_size
    work[GLUE] += tokens * c.hidden_size * c.num_experts


def _key_width(c: ModelConfig, layer: int) -> int:
    """Columns of the key and, in sliding layers, the value projection."""
    return (2 if c.is_sliding(layer) else 1) * c.kv_heads_of(layer) * c.head_dim_of(layer)


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


def weight_bytes(model: DiffusionGemma, tokens: int) -> dict[str, int]:
    """Bytes of weights that a denoise pass over `tokens` places (all rows together) reads once, by part.

    Of the experts: as many as that many tokens are expected to choose, were their choices even. The attention
    part reads keys and values, which are not counted.
    """
    c = model.config
    chosen = 1 - (1 - c.top_k_experts / c.num_experts) ** tokens
    bytes_of = dict.fromkeys(PARTS, 0)
    for layer in plain_layers(model):
        for name, child in layer.self_attn.named_children():
            bytes_of[GLUE if name.endswith("norm") else PROJECTIONS] += held(child).total
        bytes_of[DENSE] += held(layer.mlp).total
        bytes_of[EXPERTS] += int(held(layer.experts).total * chosen)
        bytes_of[GLUE] += held(layer.router).total
    bytes_of[HEAD] = _table_bytes(model.head)
    bytes_of[SELF] = held(model.self_conditioning).total + _table_bytes(model.embedding, "transposed")
    return bytes_of


def plain_layers(model: DiffusionGemma) -> Iterator[TextLayer]:
    """The layers; of those that run whole on native kernels, the plain ones that hold their weights."""
    for layer in model.layers:
        found = getattr(layer, "plain", layer)
        assert isinstance(found, TextLayer)
        yield found


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
    "plain_layers",
    "weight_bytes",
]
