"""The two sides of an adapter, encode and denoise, where files or weights have room for one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...errors import UsageError
from ...model.adapters import Adapter, Deltas, WeightDelta
from .modules import Modules


def is_same(one: WeightDelta | None, other: WeightDelta | None) -> bool:
    """Whether two changes are of equal tensors and scale."""
    if one is None or other is None or one is other:
        return one is other
    return (
        (one.scale, one.a.dtype, one.b.dtype) == (other.scale, other.a.dtype, other.b.dtype)
        and torch.equal(one.a, other.a)
        and torch.equal(one.b, other.b)
    )


def shared(adapter: Adapter) -> Adapter:
    """The same adapter, where changes that both sides have alike are held once."""
    encode = {
        name: adapter.denoise[name] if is_same(delta, adapter.denoise.get(name)) else delta
        for name, delta in adapter.encode.items()
    }
    return Adapter(encode, adapter.denoise)


def both_sides(changes: Mapping[str, WeightDelta], modules: Modules) -> Adapter:
    """The adapter that encodes and denoises with the same changes."""
    encode = {name: delta for name, delta in changes.items() if not modules.denoises_only(name)}
    return Adapter(encode, dict(changes))


def differing(adapter: Adapter, modules: Modules) -> list[str]:
    """The modules that encoding and denoising change differently; those that only denoising meets are
    none."""
    names = dict.fromkeys([*adapter.denoise, *adapter.encode])
    return [
        name
        for name in names
        if not modules.denoises_only(name)
        and not is_same(adapter.encode.get(name), adapter.denoise.get(name))
    ]


def one_side(adapter: Adapter, modules: Modules, what: str) -> Deltas:
    """The one set of changes that serves both phases. Raises UsageError where they differ, saying of `what`
    that it has room for one only."""
    apart = differing(adapter, modules)
    if apart:
        more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
        raise UsageError(
            f"the adapter encodes and denoises with different changes ({apart[0]}{more}), and {what} has one "
            "set of weights for both: keep the adapter beside its model",
            param="adapter",
        )
    return adapter.denoise


__all__ = ["both_sides", "differing", "is_same", "one_side", "shared"]
