"""Training low-rank changes of a frozen model: which matrices, and what of it the optimiser sees.

Source: Hu et al. 2021 (arXiv:2106.09685); B starts at zero, so that the first step is the base's. One set of
matrices serves both phases, since encoder and decoder share their weights; with `phases = "denoise"` the
encoder stays the base's: no gradient goes through it, and its keys and values can be shared with the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..model.adapters import Adapter, WeightDelta, denoises_only
from ..model.adapting import AdaptedSpan
from ..model.protocol import Model
from .settings import LoraSettings

# What a target's name stands for: a part of the names of the model's matrices.
TARGETS = {
    "attention": ".self_attn.",
    "mlp": ".mlp.",
    "experts": ".experts.",
    "router": ".router.",
    "self_conditioning": "self_conditioning.",
}


def chosen(shapes: Mapping[str, tuple[int, ...]], settings: LoraSettings) -> dict[str, tuple[int, ...]]:
    """The matrices that are trained. Raises UsageError for a target that is none, or that the model lacks."""
    found: dict[str, tuple[int, ...]] = {}
    for target in settings.targets:
        if target not in TARGETS:
            raise UsageError(
                f"lora.targets: {target!r} is not one of {', '.join(TARGETS)}", param="lora.targets"
            )
        its = {name: shape for name, shape in shapes.items() if TARGETS[target] in name}
        if not its:
            raise UsageError(f"lora.targets: the model has no {target}", param="lora.targets")
        found |= its
    if not found:
        raise UsageError("lora.targets: name at least one", param="lora.targets")
    return found


class Lora(nn.Module):
    """The trained matrices of one run. Freezes the model, and makes it heed them."""

    def __init__(self, model: Model, settings: LoraSettings, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.shapes = chosen(model.adaptable(), settings)
        model.requires_grad_(False)
        self.switch = model.adapt()
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, (*experts, out, inner) in self.shapes.items():
            rank = settings.rank
            a = torch.rand(*experts, rank, inner, generator=_generator(seed, name)) * 2 - 1
            self.down[_key(name)] = nn.Parameter(a * inner**-0.5)
            self.up[_key(name)] = nn.Parameter(torch.zeros(*experts, out, rank))
        self.to(model.device)

    @property
    def scale(self) -> float:
        rank = self.settings.rank
        return self.settings.alpha / (rank**0.5 if self.settings.rslora else rank)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Inside, passes of the phase "encode" or "denoise" go through what is trained of it."""
        if name == "encode" and self.settings.phases == "denoise":
            return self.switch.using([])
        return self.switch.using([AdaptedSpan(0, None, ((self._deltas(lambda p: p), 1.0),))])

    def adapter(self) -> Adapter:
        """What is trained, as it is now."""
        deltas = self._deltas(lambda p: p.detach().float().cpu().clone())
        if self.settings.phases == "denoise":
            return Adapter({}, deltas)
        return Adapter({name: d for name, d in deltas.items() if not denoises_only(name)}, deltas)

    def start_from(self, adapter: Adapter) -> None:
        """Goes on from an adapter of the same matrices and rank. Raises UsageError for another."""
        side = adapter.denoise or adapter.encode
        for name in self.shapes:
            delta = side.get(name)
            if delta is None or delta.rank != self.settings.rank:
                raise UsageError(
                    f"the adapter to go on from has no {name} of rank {self.settings.rank}", param="from"
                )
            with torch.no_grad():
                self.down[_key(name)].copy_(delta.a)
                self.up[_key(name)].copy_(delta.b * (delta.scale / self.scale))

    def _deltas(self, take: Callable[[Tensor], Tensor]) -> dict[str, WeightDelta]:
        return {
            name: WeightDelta(take(self.down[_key(name)]), take(self.up[_key(name)]), self.scale)
            for name in self.shapes
        }


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of parameters have no dots


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"lora/{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


__all__ = ["TARGETS", "Lora", "chosen"]
