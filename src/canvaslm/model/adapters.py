"""Adapters (LoRA) as data: low-rank changes of a model's matrices, apart for encoding and for denoising.

LoRA: Hu et al. 2021 (arXiv:2106.09685), W + s B A. A model that encodes and denoises with the same weights
can be adapted differently in each phase, and commonly is: `Adapter.encode` holds for encoded tokens,
`Adapter.denoise` for the places of a canvas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import UsageError


@dataclass(frozen=True)
class WeightDelta:
    """W changes by `scale` * b @ a. Of a matrix a [r, in], b [out, r]; of all experts' a [E, r, in],
    b [E, out, r]. Floats of any type, on any device."""

    a: Tensor
    b: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix that it changes: [out, in], or [E, out, in]."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    def matrix(self) -> Tensor:
        """The whole change, fp32 [out, in] or [E, out, in]."""
        return self.scale * (self.b.float() @ self.a.float())

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> WeightDelta:
        return WeightDelta(
            self.a.to(device, dtype).contiguous(), self.b.to(device, dtype).contiguous(), self.scale
        )

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing, as one that was never trained does."""
        return self.scale == 0 or not bool(self.b.any()) or not bool(self.a.any())


Deltas = Mapping[str, WeightDelta]


@dataclass(frozen=True)
class Adapter:
    """Changes of matrices by the names that the model has for them: `layers.N.self_attn.{q,k,v,o}_proj`,
    `layers.N.mlp.{gate,up,down}_proj`, `layers.N.router.proj`, `layers.N.experts.{gate_up,down}_proj`,
    `self_conditioning.{gate,up,down}_proj`. A phase that is not trained has none."""

    encode: Deltas = field(default_factory=dict)
    denoise: Deltas = field(default_factory=dict)

    @cached_property
    def encode_digest(self) -> str:
        """Says what encoded tokens hang on: 16 hex digits, empty without any change."""
        return _digest(self.encode)

    @cached_property
    def denoise_digest(self) -> str:
        return _digest(self.denoise)

    @cached_property
    def has_equal_sides(self) -> bool:
        """Whether one set of merged weights serves both phases. What encoding never meets (the mixer of soft
        embeddings) needs no equal."""
        common = {name: delta for name, delta in self.denoise.items() if not denoises_only(name)}
        encode = {name: delta for name, delta in self.encode.items() if not denoises_only(name)}
        return _digest(encode) == _digest(common)

    @property
    def parameter_count(self) -> int:
        """Numbers in both sides; tensors that the sides share count once."""
        tensors = {id(t): t.numel() for side in (self.encode, self.denoise) for t in _tensors(side)}
        return sum(tensors.values())

    @property
    def nbytes(self) -> int:
        """Memory in fp32."""
        return 4 * self.parameter_count

    def without_zeros(self) -> Adapter:
        """Less the changes that change nothing, so that rows which have them have the base's bits."""
        encode, denoise = (
            {name: delta for name, delta in side.items() if not delta.is_zero}
            for side in (self.encode, self.denoise)
        )
        return replace(self, encode=encode, denoise=denoise)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Adapter:
        """On another device; what the sides share stays shared."""
        moved: dict[int, WeightDelta] = {}

        def side(deltas: Deltas) -> dict[str, WeightDelta]:
            for delta in deltas.values():
                if id(delta) not in moved:
                    moved[id(delta)] = delta.to(device, dtype)
            return {name: moved[id(delta)] for name, delta in deltas.items()}

        return Adapter(side(self.encode), side(self.denoise))


def denoises_only(name: str) -> bool:
    """Whether a matrix is met by canvases alone."""
    return name.startswith("self_conditioning.")


def check_adapter(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], name: str = "adapter") -> None:
    """Raises one UsageError that names all that does not fit a model whose matrices have these shapes."""
    wrong = []
    for phase, side in (("encode", adapter.encode), ("denoise", adapter.denoise)):
        for module, delta in side.items():
            if module not in shapes:
                wrong.append(f"{phase} {module}: the model has no such matrix")
            elif delta.shape != shapes[module]:
                wrong.append(f"{phase} {module}: {list(delta.shape)}, the model's is {list(shapes[module])}")
            elif delta.a.shape[-2] != delta.b.shape[-1]:
                wrong.append(f"{phase} {module}: ranks {delta.a.shape[-2]} and {delta.b.shape[-1]}")
    if not adapter.encode and not adapter.denoise:
        wrong.append("it changes nothing")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise UsageError(
            f"{name}: the adapter does not fit this model; was it trained for another? "
            + "; ".join(wrong[:8])
            + more,
            param="adapter",
        )


def _tensors(side: Deltas) -> Iterable[Tensor]:
    for delta in side.values():
        yield delta.a
        yield delta.b


def _digest(side: Deltas) -> str:
    if not side:
        return ""
    found = hashlib.sha256()
    for name in sorted(side):
        delta = side[name]
        found.update(f"{name} {list(delta.a.shape)} {list(delta.b.shape)} {delta.scale!r}".encode())
        for tensor in (delta.a, delta.b):
            found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


__all__ = ["Adapter", "Deltas", "WeightDelta", "check_adapter", "denoises_only"]
