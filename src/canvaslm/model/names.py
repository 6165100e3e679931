"""What a family's tables of names must say: its weights in Hugging Face checkpoints and
in GGUF files. Torch-free.

"Our" name of a weight is the one in the model's `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .config import ModelConfig

Role = Literal["weight", "copy", "vision", "unknown"]
Part = Literal[
    "embedding", "attention", "dense MLP", "router", "experts", "self-conditioning", "norms", "head"
]
Shape = tuple[int, ...]


def _no_copies(name: str) -> tuple[str, ...]:
    return ()


def _no_stand_in(name: str) -> str | None:
    return None


@dataclass(frozen=True)
class Place:
    """Where a checkpoint's tensor goes. `name` is ours; a "copy" should equal the weight of that name."""

    role: Role
    name: str = ""


@dataclass(frozen=True)
class WeightNames:
    """The names of a family's weights in safetensors files."""

    weight_shapes: Callable[[ModelConfig], dict[str, Shape]]  # of every weight of a model, by our name
    place_of: Callable[[str], Place]  # of a tensor of a checkpoint, by the checkpoint's name
    to_hf: Callable[[str], str]  # the checkpoint's name of one of our weights
    part_of: Callable[[str], Part]  # the part of the model one of our weights belongs to, for summaries
    embedding: str  # our name of the embedding [V, H]
    head: str  # our name of the output matrix [V, H]; a model with tied embeddings has none
    # The further names that a checkpoint with untied embeddings holds a weight under.
    copies_of: Callable[[str], tuple[str, ...]] = _no_copies
    # The weight that fills another where a checkpoint has none; None: it must be there.
    # And what to tell then.
    stand_in: Callable[[str], str | None] = _no_stand_in
    stand_in_note: str = ""


class TensorSize(Protocol):
    """What a file's header says of a tensor."""

    @property
    def shape(self) -> Shape: ...
    @property
    def format(self) -> str: ...


class Metadata(Protocol):
    """An open GGUF file, as a family's reader sees it. What is missing or of a wrong
    type raises BadModelFile."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def integer(self, key: str, default: int | None = None) -> int: ...
    def number(self, key: str, default: float | None = None) -> float: ...
    def per_layer(self, key: str, layers: int) -> list[Any]:
        """An array with one entry a layer; a plain number stands for all layers."""

    def info(self, name: str) -> TensorSize: ...
    def raw_tensor(self, name: str) -> bytes: ...


# How a value is stored in GGUF metadata, and the value.
Stored = tuple[Literal["string", "u32", "f32", "flag", "bools", "i32s"], Any]


@dataclass(frozen=True)
class GGUFNames:
    """How a family's models stand in GGUF files."""

    architectures: tuple[str, ...]  # values of `general.architecture`; the first is the one written
    # (file, special token ids by name, tokens that end an answer) -> the model's sizes. Raises BadModelFile
    # for a key that is wrong, BadConfig for sizes that contradict each other.
    read_config: Callable[[Metadata, Mapping[str, int], tuple[int, ...]], ModelConfig]
    config_metadata: Callable[[ModelConfig], dict[str, Stored]]  # the model's sizes under GGUF's keys
    to_gguf: Callable[
        [str], str
    ]  # the GGUF name of one of our weights; KeyError for a name that is none of ours
    # Our name of a GGUF tensor, and which half of it the tensor is (None: all); None for a name not known.
    from_gguf: Callable[[str], tuple[str, int | None] | None]
    order: Callable[[str], tuple[int, int]]  # sort key of our names: the order in which a file holds them
    # Tensors that are no weights but follow from the sizes: [n] fp32 values by GGUF name; and
    # whether a name is one.
    tables: Callable[[ModelConfig], dict[str, list[float]]]
    is_table: Callable[[str], bool]


__all__ = [
    "GGUFNames",
    "Metadata",
    "Part",
    "Place",
    "Role",
    "Shape",
    "Stored",
    "TensorSize",
    "WeightNames",
]
