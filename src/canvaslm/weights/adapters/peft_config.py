"""What `adapter_config.json` says that changes a computation; everything else in it is the tensors' to say.

Fields: PEFT's `LoraConfig`. Torch-free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import BadConfig
from ..resolve import read_json
from ..safetensors_.header import shown

# Fields that, when set, change what the tensors mean, or stand for weights beside them.
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in lora_B",
    "modules_to_save": "whole modules trained beside the adapter",
    "trainable_token_indices": "trained rows of the embedding",
    "alora_invocation_tokens": "aLoRA, an adapter that is on from a token onwards",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "layer_replication": "layers that are repeated",
    "arrow_config": "Arrow, a router among adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# What only training sees.
_INERT = {
    "use_rslora", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config",
    "runtime_config", "velora_config",
}  # fmt: skip
# Initialisations that take their share out of the base's weights.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REMEDY = "merge it into the model where it was trained, and give that model"

_MAX_PATTERN = 300
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")


@dataclass(frozen=True)
class PeftConfig:
    """`expert_layout`: "new" as PEFT writes experts from version 0.19 on, "old" before; None where the file
    names no version. `base`: the model that it says it was trained for."""

    alpha: float
    rslora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    expert_layout: str | None = None
    base: str | None = None

    def scale(self, key: str, rank: int) -> float:
        """The factor of a module by its name in transformers' model."""
        alpha = next(
            (value for pattern, value in self.alpha_pattern.items() if _matches(pattern, key)), self.alpha
        )
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_peft_config(path: Path) -> PeftConfig:
    """Raises BadConfig naming the file and the field that is wrong or that canvaslm does not support."""
    data = read_json(path)
    _refuse(path, data)
    base = data.get("base_model_name_or_path")
    return PeftConfig(
        alpha=_number(path, "lora_alpha", data.get("lora_alpha")),
        rslora=_flag(path, "use_rslora", data.get("use_rslora")),
        alpha_pattern=_pattern(path, "alpha_pattern", data.get("alpha_pattern")),
        expert_layout=_expert_layout(data.get("peft_version")),
        base=base if isinstance(base, str) and base else None,
    )


def _refuse(path: Path, data: Mapping[str, Any]) -> None:
    kind = data.get("peft_type", "LORA")
    if kind != "LORA":
        raise BadConfig(f"{path}: peft_type {shown(kind)} is not supported, only LORA; {_REMEDY}")
    if data.get("bias") not in (None, "none"):
        raise BadConfig(f"{path}: bias = {shown(data['bias'])}: trained biases are not supported; {_REMEDY}")
    for name, value in data.items():
        if value in (None, False, [], {}, ""):
            continue
        if name in _REFUSED:
            raise BadConfig(f"{path}: {name}: {_REFUSED[name]} is not supported; {_REMEDY}")
        if (name.startswith("use_") or name.endswith("_config")) and name not in _INERT:
            raise BadConfig(
                f"{path}: {shown(name)}: canvaslm does not know what it changes; {_REMEDY}, or remove "
                "the field if it is inert"
            )
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise BadConfig(
            f"{path}: init_lora_weights = {shown(start)} changed the base's weights too; save it as plain "
            "LoRA (PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise BadConfig(f"{path}: {name} should be a number, found {shown(value)}")
    return float(value)


def _flag(path: Path, name: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise BadConfig(f"{path}: {name} should be true or false, found {shown(value)}")
    return bool(value)


def _pattern(path: Path, name: str, value: Any) -> dict[str, float]:
    """Regular expression of module names -> number."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadConfig(f"{path}: {name} should be an object of patterns and numbers, found {shown(value)}")
    for pattern in value:
        _check_pattern(path, name, pattern)
    return {pattern: _number(path, f"{name}[{shown(pattern)}]", each) for pattern, each in value.items()}


def _check_pattern(path: Path, name: str, pattern: str) -> None:
    """A pattern comes from a stranger: none that takes long to match is tried."""
    repeats = sum(pattern.count(sign) for sign in "*+{")
    if len(pattern) > _MAX_PATTERN or repeats > 4 or _REPEATED_GROUP.search(pattern):
        raise BadConfig(f"{path}: {name}: the pattern {shown(pattern)} is too complicated to be tried safely")
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise BadConfig(f"{path}: {name}: {shown(pattern)} is no regular expression ({error})") from error


def _matches(pattern: str, key: str) -> bool:
    """As PEFT's `get_pattern_key`."""
    return re.match(rf"(.*\.)?({pattern})$", key) is not None


def _expert_layout(version: Any) -> str | None:
    match = re.match(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    if match is None:
        return None
    return "new" if (int(match[1]), int(match[2])) >= (0, 19) else "old"


__all__ = ["PeftConfig", "read_peft_config"]
