"""GGUF files of random weights in the true layout, for tests and benchmarks: written as
fast as the disk takes them.

Weights are random block bytes whose scales are made to fit, so that a weight has mean 0 and deviation
1/sqrt(fan-in) and activations stay finite. Eight megabytes of blocks are drawn for each format and fan-in,
and every stretch of the file is a copy of them from another random start: rows and experts differ, and
caches see nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UsageError
from ..model.config import ModelConfig
from ..model.registry import families, family_of
from ..ops.formats.quant_tensor import FORMATS, quantise
from .gguf.file import GGUFFile
from .gguf.places import gguf_names
from .gguf.quantize import FILE_TYPES, choose_formats
from .gguf.source import config_metadata, generation_metadata, table_values
from .gguf.write import GGUFWriter, PlannedTensor, planned_size, u32
from .synth_vocab import synthetic_vocabulary

__all__ = ["SYNTH_SHAPES", "SynthPlan", "plan_synth", "random_blocks", "write_synth"]

_BUFFER_BYTES = 8 << 20


SYNTH_SHAPES = {name: config for family in families() for name, config in family.shapes.items()}
_GENERATION = {
    "max_denoising_steps": 48, "t_min": 0.4, "t_max": 0.8, "stability_threshold": 1,
    "confidence_threshold": 0.005,
    "sampler_config": {"entropy_bound": 0.1},
}  # fmt: skip


@dataclass(frozen=True)
class SynthPlan:
    """What would be written, and how large."""

    config: ModelConfig
    kind: str
    metadata: dict[str, bytes]
    tensors: tuple[PlannedTensor, ...]

    @property
    def size(self) -> int:
        return planned_size(self.metadata, self.tensors)


def plan_synth(
    shape: str | ModelConfig, kind: str, *, tokenizer: Path | None = None, layers: int | None = None
) -> SynthPlan:
    """Metadata and tensor table of a synthetic file. `tokenizer`: a GGUF file whose vocabulary is taken
    instead of a made-up one; `layers`: only so many of the first layers (`ModelConfig.with_layers`).

    Raises UsageError for an unknown shape or type or a vocabulary of another size.
    """
    config = _shape(shape) if isinstance(shape, str) else shape
    if layers is not None:
        if not 1 <= layers <= config.num_layers:
            raise UsageError(f"layers = {layers} is out of range: 1 to {config.num_layers}", param="layers")
        config = config.with_layers(layers)
    theirs, shapes = gguf_names(config), family_of(config).names.weight_shapes(config)
    named: dict[str, tuple[int, ...]] = {name: (len(t),) for name, t in table_values(config).items()}
    named |= {theirs.to_gguf(name): shapes[name] for name in sorted(shapes, key=theirs.order)}
    formats = choose_formats(named, kind)
    words = _borrowed(tokenizer, config) if tokenizer else synthetic_vocabulary(config.vocab_size)
    name = shape if isinstance(shape, str) else "tiny"
    metadata = config_metadata(config, f"synthetic {name}") | generation_metadata(_GENERATION) | words
    metadata |= {"general.file_type": u32(FILE_TYPES[kind].file_type), "general.quantization_version": u32(2)}
    tensors = tuple(PlannedTensor(name, size, formats[name]) for name, size in named.items())
    return SynthPlan(config, kind, metadata, tensors)


def _shape(name: str) -> ModelConfig:
    if name not in SYNTH_SHAPES:
        raise UsageError(f"shape {name!r} is not known; known: {', '.join(SYNTH_SHAPES)}", param="shape")
    return SYNTH_SHAPES[name]


def _borrowed(path: Path, config: ModelConfig) -> dict[str, bytes]:
    with GGUFFile(path) as file:
        tokens = file.array("tokenizer.ggml.tokens")
        if tokens is None or len(tokens) != config.vocab_size:
            count = 0 if tokens is None else len(tokens)
            raise UsageError(
                f"{path}: has {count} tokens, the shape has {config.vocab_size}", param="tokenizer"
            )
        return {key: file.raw_value(key) for key in file.metadata if key.startswith("tokenizer.")}


def write_synth(
    plan: SynthPlan,
    out: Path,
    *,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Writes the file. The same plan and seed give the same bytes. Raises UsageError as `GGUFWriter` does."""
    rng = np.random.default_rng(seed)
    buffers: dict[tuple[str, int], np.ndarray] = {}
    total, done = sum(tensor.nbytes for tensor in plan.tensors), 0
    with GGUFWriter(out, plan.metadata, plan.tensors, force=force) as writer:
        for tensor in plan.tensors:
            for piece in _pieces(plan.config, tensor, rng, buffers):
                writer.write(piece.data)
                done += piece.nbytes
                if progress is not None:
                    progress(tensor.name, done, total)
    return out


def _pieces(
    config: ModelConfig,
    tensor: PlannedTensor,
    rng: np.random.Generator,
    buffers: dict[tuple[str, int], np.ndarray],
) -> Iterator[np.ndarray]:
    """The bytes of one tensor: small fp32 ones drawn whole, large ones cut from the buffer of their kind."""
    if tensor.format == "F32":
        values = _plain_values(config, tensor, rng).astype("<f4")
        yield values.view(np.uint8).reshape(-1)
        return
    key = tensor.format, tensor.shape[-1]
    if key not in buffers:
        layout = FORMATS[tensor.format]
        count = min(_BUFFER_BYTES, tensor.nbytes * 2) // layout.size
        buffers[key] = random_blocks(tensor.format, count, tensor.shape[-1] ** -0.5, rng)
    buffer = buffers[key]
    left = tensor.nbytes // buffer.shape[1]
    while left:
        start = int(rng.integers(0, len(buffer)))
        piece = buffer[start : start + left]
        left -= len(piece)
        yield piece.reshape(-1)


def _plain_values(config: ModelConfig, tensor: PlannedTensor, rng: np.random.Generator) -> np.ndarray:
    """Norms and scales near 1, router logits of deviation 1, attention logits of a few units."""
    table = table_values(config).get(tensor.name)
    if table is not None:
        return np.asarray(table)
    noise = rng.standard_normal(tensor.shape)
    if len(tensor.shape) > 1:
        return noise if "ffn_gate_inp" in tensor.name else noise * tensor.shape[-1] ** -0.5
    values = 1 + 0.05 * noise
    # Keys are compared without 1/sqrt(head size), so their norm carries it.
    return values * 2 * tensor.shape[-1] ** -0.5 if "attn_k_norm" in tensor.name else values


def random_blocks(format: str, count: int, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """`count` blocks, uint8 [count, block bytes], whose values have mean 0 and the
    given standard deviation."""
    layout = FORMATS[format]
    if format in ("F16", "BF16"):
        values = rng.standard_normal((count, 1), np.float32) * deviation
        return quantise(format, torch.from_numpy(values)).numpy()
    if format not in _SCALES:
        raise UsageError(f"random blocks of {format} are not made", param="type")
    blocks = rng.integers(0, 256, (count, layout.size), dtype=np.uint8)
    _SCALES[format](blocks, deviation, rng)
    return blocks


def _uniform_deviation(levels: int) -> float:
    """Of whole numbers drawn uniformly from `levels` neighbouring ones."""
    return float(np.sqrt((levels**2 - 1) / 12))


def _put_half(blocks: np.ndarray, at: int, values: np.ndarray) -> None:
    blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _spread(blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A factor a block, within 0.75 to 1.25, so that blocks differ in size as real ones do."""
    factors: np.ndarray = rng.uniform(0.75, 1.25, len(blocks))
    return factors / float(np.sqrt(1 + 0.5**2 / 12))


def _signed(levels: int) -> Callable[[np.ndarray, float, np.random.Generator], None]:
    """Q8_0, Q5_0, Q4_0: levels lie one half off centre, which a random sign of the scale evens out."""

    def fill(blocks: np.ndarray, deviation: float, rng: np.random.Generator) -> None:
        sign = rng.choice([-1.0, 1.0], len(blocks))
        _put_half(blocks, 0, sign * _spread(blocks, rng) * deviation / _uniform_deviation(levels))

    return fill


def _offset(blocks: np.ndarray, deviation: float, rng: np.random.Generator) -> None:
    """Q5_1: the minimum is half the range below zero."""
    d = (_spread(blocks, rng) * deviation / _uniform_deviation(32)).astype("<f2").astype(np.float64)
    _put_half(blocks, 0, d)
    _put_half(blocks, 2, -15.5 * d)


def _affine(levels: int) -> Callable[[np.ndarray, float, np.random.Generator], None]:
    """Q4_K, Q5_K: scales of 32 to 63 units, minima equal to them, whose unit is half the range larger."""

    def fill(blocks: np.ndarray, deviation: float, rng: np.random.Generator) -> None:
        typical = np.sqrt(np.mean(np.arange(32, 64) ** 2.0))
        d = _spread(blocks, rng) * deviation / (_uniform_deviation(levels) * typical)
        _put_half(blocks, 0, d)
        _put_half(blocks, 2, d * (levels - 1) / 2)
        scales = rng.integers(32, 64, (len(blocks), 8), dtype=np.uint8)
        high = (scales[:, 4:] >> 4) << 6
        blocks[:, 4:8] = blocks[:, 8:12] = scales[:, :4] | high
        blocks[:, 12:16] = (scales[:, 4:] & 15) * 17

    return fill


def _six_bits(blocks: np.ndarray, deviation: float, rng: np.random.Generator) -> None:
    """Q6_K: scales of 64 to 127 units of either sign."""
    typical = np.sqrt(np.mean(np.arange(64, 128) ** 2.0))
    sign = rng.choice(np.array([-1, 1], np.int8), (len(blocks), 16))
    blocks[:, 192:208] = (rng.integers(64, 128, (len(blocks), 16), dtype=np.int8) * sign).view(np.uint8)
    _put_half(blocks, 208, _spread(blocks, rng) * deviation / (_uniform_deviation(64) * typical))


_SCALES: dict[str, Callable[[np.ndarray, float, np.random.Generator], None]] = {
    "Q8_0": _signed(256),
    "Q6_K": _six_bits,
    "Q5_K": _affine(32),
    "Q5_1": _offset,
    "Q5_0": _signed(32),
    "Q4_K": _affine(16),
    "Q4_0": _signed(16),
}
