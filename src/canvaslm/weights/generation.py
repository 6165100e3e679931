"""`generation_config.json`: a checkpoint's own sampling defaults and stop tokens. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from ..diffusion.params import PARAMETERS
from ..errors import BadConfig

FILE: Final = "generation_config.json"
METADATA: Final = "GGUF metadata"

# Sampler class in the file -> (our sampler, fields of the class, which are parameters of ours).
_SAMPLERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "EntropyBoundSamplerConfig": ("entropy_bound", ("entropy_bound",)),
}


def sampling_defaults(
    generation: Mapping[str, Any], source: str = FILE
) -> tuple[dict[str, Any], dict[str, str]]:
    """(keyword arguments for `Params`, where each field of `Params` comes from) for a
    `generation_config.json`.

    `source` is what the fields were really read from; the others come from "default". Only fields the file
    sets are among the arguments; null means unset. Fields that do not concern sampling are ignored. Raises
    BadConfig naming a field of the wrong type or an unknown sampler.
    """
    chosen: dict[str, Any] = {}
    for name, about in PARAMETERS.items():
        if about.stored and generation.get(name) is not None:
            chosen[name] = _number(name, generation[name], about.kind)
    chosen.update(_sampler(generation.get("sampler_config")))
    origin = {name: source if name in chosen else "default" for name in PARAMETERS}
    return chosen, origin


def stop_tokens(generation: Mapping[str, Any], otherwise: tuple[int, ...]) -> tuple[int, ...]:
    """Token ids that end an answer: the file's `eos_token_id` (one or a list), else
    `otherwise` (config.json's)."""
    value = generation.get("eos_token_id")
    if value is None:
        return otherwise
    ids = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_number("eos_token_id", token, int) for token in ids))


def _sampler(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise BadConfig(f"{FILE}: sampler_config should be an object, found {config!r}")
    name = config.get("_cls_name", "EntropyBoundSamplerConfig")
    if not isinstance(name, str) or name not in _SAMPLERS:
        raise BadConfig(
            f"{FILE}: sampler_config._cls_name is {name!r}; known: {', '.join(_SAMPLERS)} (upgrade canvaslm?)"
        )
    sampler, known = _SAMPLERS[name]
    stray = sorted(set(config) - set(known) - {"_cls_name"})
    if stray:
        raise BadConfig(f"{FILE}: sampler_config.{stray[0]} is not a field of {name} (upgrade canvaslm?)")
    values = {
        field: _number(f"sampler_config.{field}", config[field], PARAMETERS[field].kind)
        for field in known
        if config.get(field) is not None
    }
    return {"sampler": sampler, **values}


def _number(name: str, value: Any, kind: type) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    good = whole if kind is int else whole or (isinstance(value, float) and math.isfinite(value))
    if not good or abs(value) > 2**53:
        wanted = "a whole number" if kind is int else "a number"
        raise BadConfig(f"{FILE}: {name} should be {wanted}, found {value!r}")
    return kind(value)


def source_of(kind: str) -> str:
    """Where a checkpoint of this kind keeps its sampling defaults."""
    return METADATA if kind == "gguf" else FILE


__all__ = ["FILE", "METADATA", "sampling_defaults", "source_of", "stop_tokens"]
