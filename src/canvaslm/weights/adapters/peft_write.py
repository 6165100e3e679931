"""Writes an adapter as PEFT does, so that PEFT, TRL and vLLM load it: both trees, each with its tensors.

`target_modules` is one regular expression over whole paths, as in TRL's example for this model: lists of
suffixes would reach into the vision tower, whose layers PEFT cannot wrap.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...files import check_output_folder, write_text
from ...model.adapters import Adapter, WeightDelta, check_adapter
from ...model.config import ModelConfig
from ..folder import new_folder
from ..safetensors_.file import save_file
from .experts import DOWN, GATE_UP, pack
from .modules import EXPERTS, Modules, modules_of
from .peft import CONFIG, TENSORS

PEFT_VERSION = "0.21.2"  # whose layout of experts this is

_LAYER = re.compile(r"(?P<tree>.+)\.layers\.(?P<number>\d+)\.(?P<inner>.+)")


def write_peft(
    adapter: Adapter,
    out: Path,
    config: ModelConfig,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> Path:
    """Writes the folder `out`; PEFT then computes what canvaslm does. `base` is the model's name, for tools
    that look for it; `dtype` None keeps that of the tensors.

    Raises UsageError where the adapter does not fit such a model, where `out` holds a model, or something
    and `force` is false; WriteFailed where the disk is full.
    """
    modules = modules_of(config)
    check_adapter(adapter, modules.shapes)
    check_output_folder(out, force=force)
    if (out / "config.json").exists():
        raise UsageError(f"{out}: holds a model; name another folder for the adapter", param="out")
    deltas = _by_path(adapter, modules)
    with new_folder(out, force=force) as made:
        save_file(made / TENSORS, _tensors(deltas), {"format": "pt"}, dtype)
        write_text(made / CONFIG, json.dumps(_config(deltas, base), indent=2, sort_keys=True) + "\n")
    return out


def _by_path(adapter: Adapter, modules: Modules) -> dict[str, WeightDelta]:
    """Changes by the names of transformers' modules (and of experts' parameters)."""
    deltas = {modules.trees(name)[0]: delta for name, delta in adapter.denoise.items()}
    for name, delta in adapter.encode.items():
        path = modules.trees(name)[1]
        if path is not None:
            deltas[path] = delta
        elif not modules.denoises_only(name):  # whose change encoded tokens never meet
            raise UsageError(
                f"{name}: models of this family have one tree of weights in transformers, so PEFT cannot "
                "adapt encoding alone"
            )
    return deltas


def _tensors(deltas: Mapping[str, WeightDelta]) -> dict[str, Tensor]:
    tensors = {}
    for path, delta in deltas.items():
        module, a, b = path, delta.a, delta.b
        if path.endswith(EXPERTS):
            layer = path.removesuffix(GATE_UP).removesuffix(DOWN)
            inner = path.endswith(GATE_UP) and layer + DOWN in deltas
            module = f"{layer}.experts.base_layer" if inner else f"{layer}.experts"
            a, b = pack(a, b)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    return tensors


def _config(deltas: Mapping[str, WeightDelta], base: str | None) -> dict[str, Any]:
    ranks = {path: delta.rank for path, delta in deltas.items()}
    alphas = {path: _alpha(delta) for path, delta in deltas.items()}
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "r": rank,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "target_modules": _target_modules([path for path in deltas if not path.endswith(EXPERTS)]),
        "target_parameters": sorted(path for path in deltas if path.endswith(EXPERTS)) or None,
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _alpha(delta: WeightDelta) -> float:
    """What divided by the rank gives the scale; whole where it can be."""
    alpha = delta.scale * delta.rank
    return round(alpha) if round(alpha) / delta.rank == delta.scale else alpha


def _target_modules(paths: Iterable[str]) -> str | list[str]:
    """One regular expression that matches these paths whole, and no other: modules of the same trees and
    layers stand together."""
    places: dict[str, set[tuple[str, int]]] = {}
    alone = []
    for path in paths:
        match = _LAYER.fullmatch(path)
        if match is None:
            alone.append(re.escape(path))
        else:
            places.setdefault(match["inner"], set()).add((match["tree"], int(match["number"])))
    by_tree: dict[tuple[str, frozenset[int]], list[str]] = {}
    for inner, found in places.items():
        for tree in sorted({tree for tree, _ in found}):
            layers = frozenset(number for other, number in found if other == tree)
            by_tree.setdefault((tree, layers), []).append(inner)
    groups: dict[tuple[frozenset[int], tuple[str, ...]], list[str]] = {}
    for (tree, layers), inners in by_tree.items():
        groups.setdefault((layers, tuple(sorted(inners))), []).append(tree)
    parts = [
        rf"{_one_of(trees)}\.layers\.{_one_of(map(str, sorted(layers)))}\.{_one_of(inners)}"
        for (layers, inners), trees in groups.items()
    ]
    # An empty list keeps PEFT from choosing for itself.
    return "|".join(sorted([*parts, *alone])) or []


def _one_of(words: Iterable[str]) -> str:
    return f"({'|'.join(re.escape(word) for word in words)})"


__all__ = ["PEFT_VERSION", "write_peft"]
