"""A model without memory: on torch's meta device, shapes without storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...errors import BadModelFile
from ...model import registry
from ...model.config import ModelConfig
from ...model.protocol import Model


class _NothingToInitialise(TorchFunctionMode):
    """Skips random and constant initialisation: on the meta device it changes nothing, and random numbers
    there make torch import its compiler, which takes over a second.
    """

    _SKIPPED = frozenset(("normal_", "uniform_", "trunc_normal_", "zero_", "fill_"))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._SKIPPED:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def meta_model(config: ModelConfig) -> Model:
    """The model on the meta device. Raises RuntimeError for sizes that no machine holds."""
    with _NothingToInitialise():
        return registry.build(config, device="meta")


def empty_model(config: ModelConfig, where: object) -> Model:
    """As `meta_model`, for the checkpoint `where`. Raises BadModelFile for sizes that no machine holds."""
    try:
        return meta_model(config)
    except RuntimeError as error:
        raise BadModelFile(f"{where}: its sizes give tensors that no machine holds ({error})") from error


def fill_with_memory(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Gives what is left on the meta device memory on `device`, unset. As `to_empty`, which takes half a
    second to find out how tensors of symbolic shapes would lie.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                kept = dtype if buffer.is_floating_point() else buffer.dtype
                setattr(module, name, torch.empty(buffer.shape, dtype=kept, device=device))


__all__ = ["empty_model", "fill_with_memory", "meta_model"]
