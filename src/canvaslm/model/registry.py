"""The families of models that canvaslm runs: which reader, which class, which names belong to a checkpoint.

A family is a folder in this package and an entry here. Nothing else in canvaslm names one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import BadConfig
from ..families import ChatMarkers
from .config import ModelConfig
from .diffusion_gemma import entry as diffusion_gemma
from .names import GGUFNames, WeightNames

if TYPE_CHECKING:
    import torch

    from .protocol import Model
    from .work import Work


def plain_summary(config: ModelConfig) -> list[tuple[str, str]]:
    """What can be told of a model of any family."""
    return [
        ("type", f"{config.family} (block diffusion)"),
        ("layers", str(config.num_layers)),
        ("hidden size", f"{config.hidden_size:,}"),
        (
            "attention",
            f"{config.num_heads} heads of {config.head_dim_of(0)}, {config.kv_heads_of(0)} for keys",
        ),
    ]


@dataclass(frozen=True)
class Family:
    """What canvaslm knows of one family before any weight is read."""

    name: str  # `config.family` of its models
    model_types: tuple[str, ...]  # `model_type` in config.json; the first is the one written
    read_config: Callable[[Mapping[str, Any]], ModelConfig]  # raises BadConfig naming the field at fault
    build: Callable[[ModelConfig, torch.device | str | None, torch.dtype | None], Model]
    names: WeightNames
    gguf: GGUFNames | None = None  # None: the family is not read from or written to GGUF
    markers: ChatMarkers = field(default_factory=ChatMarkers)
    shapes: Mapping[str, ModelConfig] = field(
        default_factory=dict
    )  # sizes that go by a name, for made-up weights
    # Rows (label, text) of the architecture for `canvaslm show`, the type first; and the work of layers for
    # `bench`, None: its parts are not measured.
    summary: Callable[[ModelConfig], list[tuple[str, str]]] = plain_summary
    work: Callable[[], Work] | None = None


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Adds a family. One of the same name is replaced."""
    _FAMILIES[family.name] = family


def unregister(name: str) -> None:
    """Takes a family out again."""
    del _FAMILIES[name]


def families() -> tuple[Family, ...]:
    return tuple(_FAMILIES.values())


def family_of(config: ModelConfig) -> Family:
    """The family that a configuration belongs to."""
    return _FAMILIES[config.family]


def family_of_type(model_type: object) -> Family:
    """The family of a config.json's `model_type`. Raises BadConfig for one that canvaslm does not run."""
    for family in families():
        if model_type in family.model_types:
            return family
    known = ", ".join(repr(name) for family in families() for name in family.model_types)
    raise BadConfig(f"config.json: model_type is {model_type!a:.120}; canvaslm runs {known} checkpoints")


def family_of_architecture(architecture: str) -> Family | None:
    """The family of a GGUF file's `general.architecture`."""
    for family in families():
        if family.gguf is not None and architecture in family.gguf.architectures:
            return family
    return None


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """Reads the content of a `config.json` of any family. Raises BadConfig naming the field at fault."""
    if not isinstance(data, Mapping):
        raise BadConfig("config.json: the top level is not an object")
    return family_of_type(data.get("model_type")).read_config(data)


def build(
    config: ModelConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Model:
    """A model of the configuration's family with fresh weights."""
    return family_of(config).build(config, device, dtype)


register(Family(**diffusion_gemma.ENTRY))

__all__ = [
    "Family",
    "build",
    "families",
    "family_of",
    "family_of_architecture",
    "family_of_type",
    "plain_summary",
    "read_config",
    "register",
    "unregister",
]
