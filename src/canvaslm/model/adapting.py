"""How a pass is told which tokens go through which adapter, and the modules that heed it.

A model is adapted once (`Model.adapt`): modules of these kinds take the place of those whose products an
adapter may change. What they add hangs on the spans that are in use; without any they give what they wrap
gives, bit for bit. Each span's products are made by themselves, so a row's bits are those that it has alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.lora import LowRank, adapted_experts, low_rank
from .adapters import Deltas


@dataclass(frozen=True)
class AdaptedSpan:
    """Tokens start .. stop of a pass, and the changes that hold for them: each with a factor of its scale.
    stop None: all tokens of the pass, in all rows."""

    start: int
    stop: int | None
    changes: tuple[tuple[Deltas, float], ...]

    def low_ranks(self, name: str) -> list[LowRank]:
        """Of one matrix."""
        found = ((deltas.get(name), factor) for deltas, factor in self.changes)
        return [(d.a, d.b, d.scale * factor) for d, factor in found if d is not None]


class Switch:
    """The spans that are in use now. A model's adapted modules share one. Not thread-safe."""

    def __init__(self) -> None:
        self.spans: tuple[AdaptedSpan, ...] = ()

    @contextlib.contextmanager
    def using(self, spans: Sequence[AdaptedSpan]) -> Iterator[None]:
        """For the passes inside. Spans ascend, and do not overlap."""
        before, self.spans = self.spans, tuple(span for span in spans if span.changes)
        try:
            yield
        finally:
            self.spans = before

    @contextlib.contextmanager
    def part(self, start: int, stop: int) -> Iterator[None]:
        """While only tokens start .. stop of the pass go through modules, counted from `start`."""
        before = self.spans
        self.spans = tuple(one for span in before if (one := _cut(span, start, stop)) is not None)
        try:
            yield
        finally:
            self.spans = before

    def wanted(self, *names: str) -> list[tuple[slice | None, AdaptedSpan]]:
        """The tokens for which any of these matrices changes, None: all of them; with their spans."""
        return [
            (None if span.stop is None else slice(span.start, span.stop), span)
            for span in self.spans
            if any(name in deltas for deltas, _ in span.changes for name in names)
        ]


def _cut(span: AdaptedSpan, start: int, stop: int) -> AdaptedSpan | None:
    if span.stop is None:
        return span
    first, last = max(span.start, start), min(span.stop, stop)
    return replace(span, start=first - start, stop=last - start) if first < last else None


class AdaptedLinear(nn.Module):
    """A linear layer of any kind, and what adapters add to it. x [..., L, in], tokens second to last."""

    base: Any

    def __init__(self, base: nn.Module, name: str, switch: Switch) -> None:
        super().__init__()
        self.base, self.name, self.switch = base, name, switch
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        for part, span in self.switch.wanted(self.name):
            for a, b, scale in span.low_ranks(self.name):
                if part is None:
                    out = out + low_rank(x, a, b, scale).to(out.dtype)
                else:
                    out[..., part, :] += low_rank(x[..., part, :], a, b, scale).to(out.dtype)
        return out

    def __getattr__(self, name: str) -> Any:
        """What else is asked of it (`weight`, `format`, `backend`) is the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class AdaptedMLP(nn.Module):
    """A gated MLP in one kernel; tokens that an adapter changes go through its products one after the other.

    The kernel has `product(expert, x)` of its matrices as `gate_up_product` and `down_product`.
    """

    base: Any

    def __init__(self, base: nn.Module, name: str, switch: Switch) -> None:
        super().__init__()
        self.base, self.switch = base, switch
        self.names = [f"{name}.{part}_proj" for part in ("gate", "up", "down")]

    def forward(self, x: Tensor) -> Tensor:
        wanted = self.switch.wanted(*self.names)
        if wanted and wanted[0][0] is None:
            return self._changed(x, wanted[0][1])
        out: Tensor = self.base(x)
        for part, span in wanted:
            out[..., part, :] = self._changed(x[..., part, :], span)
        return out

    def _changed(self, x: Tensor, span: AdaptedSpan) -> Tensor:
        gate_name, up_name, down_name = self.names
        rows = x.reshape(-1, x.shape[-1])
        gate, up = self.base.gate_up_product(0, rows).chunk(2, dim=-1)
        gate, up = _added(gate, rows, span, gate_name), _added(up, rows, span, up_name)
        hidden = F.gelu(gate, approximate="tanh") * up
        return _added(self.base.down_product(0, hidden), hidden, span, down_name).view_as(x)


def _added(made: Tensor, x: Tensor, span: AdaptedSpan, name: str) -> Tensor:
    for a, b, scale in span.low_ranks(name):
        made = made + low_rank(x, a, b, scale)
    return made


class AdaptedExperts(nn.Module):
    """A layer's experts; tokens that an adapter changes go through them one by one."""

    base: Any

    def __init__(self, base: nn.Module, name: str, switch: Switch) -> None:
        super().__init__()
        self.base, self.switch = base, switch
        self.gate_up_name, self.down_name = f"{name}.gate_up_proj", f"{name}.down_proj"

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        wanted = self.switch.wanted(self.gate_up_name, self.down_name)
        if wanted and wanted[0][0] is None:
            return self._changed(x, index, weights, wanted[0][1])
        out: Tensor = self.base(x, index, weights)
        for part, span in wanted:
            out[part] = self._changed(x[part], index[part], weights[part], span)
        return out

    def _changed(self, x: Tensor, index: Tensor, weights: Tensor, span: AdaptedSpan) -> Tensor:
        base = self.base
        return adapted_experts(
            x, index, weights, base.gate_up_product, base.down_product,
            span.low_ranks(self.gate_up_name), span.low_ranks(self.down_name),
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        """What else is asked of it is the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


__all__ = ["AdaptedExperts", "AdaptedLinear", "AdaptedMLP", "AdaptedSpan", "Switch"]
