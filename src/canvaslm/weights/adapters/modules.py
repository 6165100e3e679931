"""The matrices of a model that an adapter may change, and how files name them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...model.config import ModelConfig
from ...model.names import WeightNames
from ...model.registry import family_of

Shape = tuple[int, ...]

GATE_UP, DOWN = ".experts.gate_up_proj", ".experts.down_proj"
EXPERTS = (GATE_UP, DOWN)


@dataclass(frozen=True)
class Modules:
    """`shapes`: [out, in], or [E, out, in] of all experts, by the model's own names of its matrices."""

    names: WeightNames
    shapes: Mapping[str, Shape]

    def weight(self, module: str) -> str:
        """The name of a module's weight in the model."""
        return module if module.endswith(EXPERTS) else f"{module}.weight"

    def denoises_only(self, module: str) -> bool:
        """Whether encoded tokens never meet the matrix."""
        return self.names.part_of(self.weight(module)) == "self-conditioning"

    def trees(self, module: str) -> tuple[str, str | None]:
        """The names that transformers has for a module: the denoiser's, and the encoder's (None without
        one)."""
        copies = self.names.copies_of(self.weight(module))
        encoder = copies[0].removesuffix(".weight") if copies else None
        return self.names.to_hf(self.weight(module)).removesuffix(".weight"), encoder


def modules_of(config: ModelConfig) -> Modules:
    """What an adapter of such a model may change: every matrix but the embedding and the head."""
    names = family_of(config).names
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in names.weight_shapes(config).items()
        if len(shape) >= 2 and names.part_of(name) not in ("embedding", "head")
    }
    return Modules(names, shapes)


__all__ = ["DOWN", "EXPERTS", "GATE_UP", "Modules", "Shape", "modules_of"]
