"""Adapters in GGUF files, as llama.cpp reads and writes them: `<tensor>.lora_a` and `.lora_b`.

The scale is `adapter.lora.alpha` over the rank, and 1 where alpha is 0. llama.cpp multiplies what an expert's
down projection gives by the expert's own scale *before* it adds the adapter's share, canvaslm after: so B of
down projections is written times that scale, and divided by it when read.

Format: llama.cpp's `llama-adapter.cpp` and `convert_lora_to_gguf.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import BadModelFile, UsageError
from ...model.adapters import Adapter, WeightDelta, check_adapter
from ...model.config import ModelConfig
from ..gguf.file import GGUFFile
from ..gguf.places import gguf_names
from ..gguf.write import GGUFWriter, PlannedTensor, f32, string
from ..safetensors_.header import shown
from .modules import DOWN, Modules, Shape, modules_of
from .sides import both_sides, one_side

ALPHA = "adapter.lora.alpha"

# Scales of experts, fp [E] by the name of the weight, as in a model's state_dict.
ExpertScales = Mapping[str, Tensor]

_KEY = re.compile(r"(?P<base>.+)\.lora_(?P<half>[ab])")
_LISTED = 20


def read_gguf_adapter(path: Path, config: ModelConfig, scales: ExpertScales | None = None) -> Adapter:
    """The adapter in a GGUF file, for a model of these sizes, in fp32. It says the same of both phases.

    Raises NotFound; UsageError where it adapts the experts' down projections and `scales` (the base's
    `layers.N.router.per_expert_scale`) are not given; one BadModelFile naming all that does not fit.
    """
    modules = modules_of(config)
    with GGUFFile(path) as file:
        _check_kind(file, config)
        alpha = file.number(ALPHA, 0.0)
        found = _Halves()
        for base, names in _pairs(file, found).items():
            _read_pair(file, base, names, alpha, config, modules, found)
    changes = {}
    for module, parts in found.parts.items():
        change = _joined(parts, modules.shapes[module]) if None not in parts else parts[None]
        changes[module] = _without_scale(module, change, scales, path) if module.endswith(DOWN) else change
    if not found.problems and not changes:
        found.problems.append("it holds no adapter tensors")
    if found.problems:
        raise BadModelFile(_report(path, found.problems))
    return both_sides(changes, modules)


@dataclass
class _Halves:
    """Changes by module and half: None is all of it, 0 and 1 the gate's and the up projection's."""

    problems: list[str] = field(default_factory=list)
    parts: dict[str, dict[int | None, WeightDelta]] = field(default_factory=dict)


def _check_kind(file: GGUFFile, config: ModelConfig) -> None:
    kind = file.text("general.type")
    if kind != "adapter":
        raise BadModelFile(f"{file.path}: general.type is {shown(kind)}: it is a model, not an adapter")
    form = file.text("adapter.type")
    if form != "lora" or any(key.startswith("adapter.alora") for key in file.metadata):
        raise BadModelFile(f"{file.path}: adapter.type {shown(form)} is not supported, only plain lora")
    architecture, known = file.text("general.architecture"), gguf_names(config).architectures
    if architecture not in known:
        raise BadModelFile(
            f"{file.path}: is for models of architecture {shown(architecture)}, this one's is {known[0]!r}"
        )


def _pairs(file: GGUFFile, found: _Halves) -> dict[str, dict[str, str]]:
    """Base tensor -> "a", "b" -> the tensor's name, where there are both."""
    pairs: dict[str, dict[str, str]] = {}
    for name in file.tensors:
        match = _KEY.fullmatch(name)
        if match is None:
            found.problems.append(f"{shown(name)}: left over, it is no part of a LoRA")
        else:
            pairs.setdefault(match["base"], {})[match["half"]] = name
    for base, names in list(pairs.items()):
        if len(names) == 1:
            ((half, name),) = pairs.pop(base).items()
            found.problems.append(f"{shown(name)}: there is no lora_{'b' if half == 'a' else 'a'} to it")
    return pairs


def _read_pair(
    file: GGUFFile, base: str, names: Mapping[str, str], alpha: float,
    config: ModelConfig, modules: Modules, found: _Halves,
) -> None:  # fmt: skip
    place = gguf_names(config).from_gguf(base)
    module = "" if place is None else place[0].removesuffix(".weight")
    if place is None or module not in modules.shapes:
        found.problems.append(f"{shown(base)}: canvaslm adapts no such matrix of this model")
        return
    half, shape = place[1], modules.shapes[module]
    expected = shape if half is None else (*shape[:-2], shape[-2] // 2, shape[-1])
    a, b = (file.info(names[key]).shape for key in "ab")
    if (*b[:-1], a[-1]) != expected or a[:-2] != b[:-2] or len(a) < 2 or a[-2] != b[-1]:
        found.problems.append(
            f"{shown(base)}: lora_a {list(a)} and lora_b {list(b)} do not fit a matrix {list(expected)}"
        )
        return
    first, second = (file.tensor(names[key]).dequantise() for key in "ab")
    bad = [names[key] for key, t in (("a", first), ("b", second)) if not torch.isfinite(t).all()]
    found.problems += [f"{shown(name)}: holds NaN or infinite values" for name in bad]
    change = WeightDelta(first, second, alpha / b[-1] if alpha else 1.0)
    parts = found.parts.setdefault(module, {})
    if half in parts or (parts and (half is None or None in parts)):
        found.problems.append(f"{shown(base)}: a second adapter of the same matrix")
    parts[half] = change


def _joined(halves: Mapping[int | None, WeightDelta], shape: Shape) -> WeightDelta:
    """Changes of the gate and the up half, or of one of them, as one of all rows: the ranks add up."""
    middle = shape[-2] // 2
    present = sorted((half, change) for half, change in halves.items() if half is not None)
    b = torch.zeros(*shape[:-1], sum(change.rank for _, change in present))
    at = 0
    for half, change in present:
        b[..., half * middle : (half + 1) * middle, at : at + change.rank] = change.scale * change.b
        at += change.rank
    return WeightDelta(torch.cat([change.a for _, change in present], dim=-2), b)


def _scale_of(module: str, scales: ExpertScales | None, path: Path) -> Tensor:
    """The experts' own scales [E, 1, 1] of the layer of a down projection."""
    name = module.removesuffix(DOWN) + ".router.per_expert_scale"
    if scales is None or name not in scales:
        raise UsageError(
            f"{path}: adapts experts' down projections ({module}), whose form in GGUF hangs on the base's "
            "own scales of its experts: name the base model",
            param="model",
        )
    return scales[name].detach().float().cpu()[:, None, None]


def _without_scale(module: str, change: WeightDelta, scales: ExpertScales | None, path: Path) -> WeightDelta:
    scale = _scale_of(module, scales, path)
    if (scale == 0).any():
        raise BadModelFile(
            f"{path}: {module}: the base scales an expert by 0, so what the adapter does to it is not known"
        )
    return WeightDelta(change.a, change.b / scale, change.scale)


def write_gguf_adapter(
    adapter: Adapter,
    out: Path,
    config: ModelConfig,
    scales: ExpertScales | None = None,
    *,
    force: bool = False,
    sources: tuple[Path, ...] = (),
) -> Path:
    """Writes the file `out` in fp32; where scales differ, B takes up the difference.

    Raises UsageError where the adapter does not fit such a model or its sides differ, where `scales` are
    needed and not given, and as `files.check_output` of `out`; WriteFailed where the disk is full.
    """
    modules, theirs = modules_of(config), gguf_names(config)
    check_adapter(adapter, modules.shapes)
    changes = one_side(adapter, modules, "a GGUF file")
    alpha = _common_alpha(changes)
    metadata = {
        "general.type": string("adapter"),
        "general.architecture": string(theirs.architectures[0]),
        "general.name": string(out.stem),
        "adapter.type": string("lora"),
        ALPHA: f32(alpha),
    }
    plan, tensors = [], []
    for module in sorted(changes, key=lambda name: theirs.order(modules.weight(name))):
        change, base = changes[module], theirs.to_gguf(modules.weight(module))
        b = change.b.float() * (change.scale * change.rank / alpha)
        if module.endswith(DOWN):
            b = b * _scale_of(module, scales, out)
        for half, tensor in (("a", change.a.float()), ("b", b)):
            plan.append(PlannedTensor(f"{base}.lora_{half}", tuple(tensor.shape), "F32"))
            tensors.append(tensor.cpu().contiguous())
    with GGUFWriter(out, metadata, plan, force=force, sources=sources) as writer:
        for tensor in tensors:
            writer.write(tensor.numpy().data)
    return out


def _common_alpha(changes: Mapping[str, WeightDelta]) -> float:
    """The alpha of most changes, as fp32 holds it; never 0, which would stand for a scale of 1."""
    alphas = Counter(change.scale * change.rank for change in changes.values() if change.scale)
    return float(np.float32(alphas.most_common(1)[0][0])) if alphas else 1.0


def _report(path: Path, problems: list[str]) -> str:
    lines = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  and {len(problems) - _LISTED} more")
    return f"{path}: the adapter does not fit this model\n" + "\n".join(lines)


__all__ = ["ALPHA", "ExpertScales", "read_gguf_adapter", "write_gguf_adapter"]
