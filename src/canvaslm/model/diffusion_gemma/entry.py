"""DiffusionGemma's entry in the registry of families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config import ModelConfig
from ..names import GGUFNames, WeightNames
from . import gguf_fields, gguf_names, hf_names
from .config import DiffusionGemmaConfig
from .shapes import SHAPES
from .summary import summary

if TYPE_CHECKING:
    import torch

    from ..work import Work
    from .model import DiffusionGemma


def build(
    config: ModelConfig, device: torch.device | str | None, dtype: torch.dtype | None
) -> DiffusionGemma:
    """The model with fresh weights."""
    from .model import DiffusionGemma

    assert isinstance(config, DiffusionGemmaConfig)
    return DiffusionGemma(config, device, dtype)


def work() -> Work:
    """What its layers do, for measuring."""
    from .work import WORK

    return WORK


NAMES = WeightNames(
    weight_shapes=hf_names.weight_shapes,
    place_of=hf_names.place_of,
    to_hf=hf_names.to_hf,
    part_of=hf_names.part_of,
    embedding=hf_names.EMBEDDING,
    head=hf_names.HEAD,
    copies_of=hf_names.copies_of,
    stand_in=hf_names.stand_in,
    stand_in_note=hf_names.STAND_IN_NOTE,
)

GGUF = GGUFNames(
    architectures=gguf_fields.ARCHITECTURES,
    read_config=gguf_fields.read_config,
    config_metadata=gguf_fields.config_metadata,
    to_gguf=gguf_names.to_gguf,
    from_gguf=gguf_names.from_gguf,
    order=gguf_names.gguf_order,
    tables=gguf_fields.tables,
    is_table=lambda name: name == gguf_names.ROPE_FREQS,
)

# Keyword arguments of `registry.Family`; its chat markers are the defaults.
ENTRY: dict[str, Any] = {
    "name": DiffusionGemmaConfig.family,
    "model_types": ("diffusion_gemma",),
    "read_config": DiffusionGemmaConfig.from_dict,
    "build": build,
    "names": NAMES,
    "gguf": GGUF,
    "shapes": SHAPES,
    "summary": summary,
    "work": work,
}

__all__ = ["ENTRY", "GGUF", "NAMES", "build"]
