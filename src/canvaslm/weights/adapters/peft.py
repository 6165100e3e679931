"""Reads adapters that PEFT wrote: `adapter_model.safetensors` beside `adapter_config.json`.

The tensors decide what is adapted, not the configuration's `target_modules`, and every one of them is used or
named in one error. transformers' model has two trees of modules with the same weights, for encoding and for
denoising, and tools train adapters of the two apart; keys without either tree stand for both.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...errors import BadModelFile, NotFound
from ...model.adapters import Adapter, WeightDelta
from ...model.config import ModelConfig
from ..loading.plan import READABLE
from ..resolve import inside
from ..safetensors_.file import DTYPES, TensorFile
from ..safetensors_.header import shown
from .experts import DOWN, GATE_UP, readings, unpack
from .modules import Modules, modules_of
from .peft_config import PeftConfig, read_peft_config
from .sides import shared

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_EXPERTS = re.compile(r"(?P<layer>.+)\.experts(?P<inner>\.base_layer)?")
_OTHER_KINDS = (
    ("lora_embedding_", "an adapter of an embedding"),
    ("lora_magnitude_vector", "DoRA"),
    (".lora_B.bias", "a bias in lora_B"),
    ("modules_to_save", "a whole module"),
    ("token_adapter", "trained rows of the embedding"),
)
_LISTED = 20
_FOREIGN = "the model has no such matrix (was the adapter trained for another?)"


@dataclass(frozen=True)
class _Pair:
    """lora_A and lora_B of a module of transformers' model, and the sides it is of."""

    key: str
    a: Tensor
    b: Tensor
    sides: tuple[str, ...]


@dataclass
class _Found:
    """What the file holds so far. `experts`: (sides, layer) -> the pair in the inner place and in the
    outer."""

    problems: list[str] = field(default_factory=list)
    matrices: dict[str, list[_Pair]] = field(default_factory=dict)  # by our name of the module
    experts: dict[tuple[tuple[str, ...], str], dict[bool, _Pair]] = field(default_factory=dict)
    sides: dict[str, dict[str, WeightDelta]] = field(default_factory=lambda: {"encode": {}, "denoise": {}})


def read_peft(path: str | os.PathLike[str], config: ModelConfig) -> Adapter:
    """The adapter in a folder that PEFT wrote, for a model of these sizes; tensors stay as stored, on the
    CPU.

    Raises NotFound where a file is missing; BadConfig for a field that is wrong or not supported, and one
    BadModelFile for all tensors that are left over, alone, of another shape or dtype, or not finite.
    """
    folder = Path(path)
    tensors_path = _tensors_path(folder)
    settings = read_peft_config(_named(folder, CONFIG))
    modules = modules_of(config)
    found = _Found()
    for key, pair in _pairs(tensors_path, found).items():
        _sort(key, pair, modules, found)
    for ours, pairs in found.matrices.items():
        for each in pairs:
            _add_matrix(ours, each, modules, settings, found)
    _add_experts(modules, settings, found)
    if not found.problems and not any(found.sides.values()):
        found.problems.append("it holds no adapter tensors")
    if found.problems:
        raise BadModelFile(_report(tensors_path, found.problems))
    return shared(Adapter(found.sides["encode"], found.sides["denoise"]))


def _tensors_path(folder: Path) -> Path:
    try:
        return _named(folder, TENSORS)
    except NotFound:
        pickles = sorted(path.name for path in folder.glob("adapter_model*.bin"))
        if not pickles:
            raise
        raise BadModelFile(
            f"{folder / pickles[0]}: is a pickle, which canvaslm never loads, since that runs code; save the "
            "adapter as safetensors where you trust it (PEFT: model.save_pretrained(folder))"
        ) from None


def _named(folder: Path, name: str) -> Path:
    if not os.path.lexists(folder / name):
        raise NotFound(f"{folder}: there is no {name} in it; an adapter is {CONFIG} and {TENSORS}")
    return inside(folder, name)


def _pairs(path: Path, found: _Found) -> dict[str, tuple[Tensor, Tensor]]:
    """Both halves of each module by its name in transformers' model; what has none is a problem."""
    pairs = {}
    with TensorFile(path) as file:
        for module, names in _halves(file, found).items():
            if len(names) == 1:
                ((half, name),) = names.items()
                found.problems.append(f"{shown(name)}: there is no lora_{'B' if half == 'A' else 'A'} to it")
                continue
            wrong = [problem for name in names.values() if (problem := _wrong(file, name))]
            found.problems += wrong
            if wrong:
                continue
            a, b = (_read(file, names[half], found) for half in "AB")
            if a.shape[0] == b.shape[1]:
                pairs[module] = (a, b)
            else:
                found.problems.append(
                    f"{shown(module)}: lora_A is of rank {a.shape[0]}, lora_B of {b.shape[1]}"
                )
    return pairs


def _halves(file: TensorFile, found: _Found) -> dict[str, dict[str, str]]:
    """Module -> "A", "B" -> the tensor's name."""
    halves: dict[str, dict[str, str]] = {}
    for name in file.header.tensors:
        match = _KEY.fullmatch(name)
        if match is None:
            found.problems.append(f"{shown(name)}: {_other_kind(name)}")
        else:
            halves.setdefault(match["module"], {})[match["half"]] = name
    return halves


def _wrong(file: TensorFile, name: str) -> str | None:
    info = file.header.tensors[name]
    if info.dtype in READABLE and len(info.shape) == 2 and 0 not in info.shape:
        return None
    return f"{shown(name)}: {info.dtype} {list(info.shape)}, expected a matrix of {', '.join(READABLE)}"


def _other_kind(name: str) -> str:
    kind = next((kind for word, kind in _OTHER_KINDS if word in name), None)
    return f"{kind}, which is not supported" if kind else "left over, it is no part of a LoRA"


def _read(file: TensorFile, name: str, found: _Found) -> Tensor:
    info = file.header.tensors[name]
    target = torch.empty(info.shape, dtype=DTYPES[info.dtype])
    try:
        file.read_into(name, target)
    except BadModelFile as error:
        found.problems.append(str(error).removeprefix(f"{info.path}: "))
    return target


def _sort(key: str, pair: tuple[Tensor, Tensor], modules: Modules, found: _Found) -> None:
    """Finds the matrix that a pair belongs to, or a problem."""
    match = _EXPERTS.fullmatch(key)
    place = modules.names.place_of(f"{match['layer']}{DOWN}" if match else f"{key}.weight")
    ours = place.name.removesuffix(".weight")
    sides: tuple[str, ...] = ("encode",) if place.role == "copy" else ("denoise",)
    if place.role == "vision":
        found.problems.append(f"{shown(key)}: is of the vision tower, which canvaslm does not run")
        return
    if place.role == "unknown":  # without a tree: for both
        ours = f"{match['layer']}{DOWN}" if match else key
        ours = ours.removeprefix("model.")
    one_tree = place.role == "weight" and modules.names.copies_of(modules.weight(ours)) == ()
    if place.role == "unknown" or one_tree:
        sides = ("denoise",) if modules.denoises_only(ours) else ("encode", "denoise")
    if ours not in modules.shapes:
        part = modules.names.part_of(place.name) if place.role in ("weight", "copy") else ""
        stands = f"adapters of the {part} are not supported" if part in ("embedding", "head") else _FOREIGN
        found.problems.append(f"{shown(key)}: {stands}")
    elif match:
        layer = ours.removesuffix(DOWN)
        slots = found.experts.setdefault((sides, layer), {})
        slots[bool(match["inner"])] = _Pair(key, *pair, sides)
    else:
        found.matrices.setdefault(ours, []).append(_Pair(key, *pair, sides))


def _add_matrix(ours: str, pair: _Pair, modules: Modules, settings: PeftConfig, found: _Found) -> None:
    shape = (pair.b.shape[0], pair.a.shape[1])
    if shape != modules.shapes[ours]:
        found.problems.append(
            f"{shown(pair.key)}: changes a matrix {list(shape)}, the model's is {list(modules.shapes[ours])}"
        )
        return
    _place(ours, WeightDelta(pair.a, pair.b, settings.scale(pair.key, pair.a.shape[0])), pair, found)


def _place(ours: str, delta: WeightDelta, pair: _Pair, found: _Found) -> None:
    for side in pair.sides:
        if ours in found.sides[side]:
            found.problems.append(f"{shown(pair.key)}: a second adapter of the same matrix")
        found.sides[side][ours] = delta


def _add_experts(modules: Modules, settings: PeftConfig, found: _Found) -> None:
    """Names the parameters that the pairs are of, and the layout that all of them are in."""
    read: list[tuple[str, _Pair, set[tuple[str, str]]]] = []
    for (_, layer), slots in found.experts.items():
        shapes = {part: modules.shapes[layer + part] for part in (GATE_UP, DOWN)}
        if False not in slots:
            found.problems.append(f"{shown(slots[True].key)}: the tensors of experts.down_proj are missing")
            continue
        for inner, pair in slots.items():
            parts = [GATE_UP] if inner else [DOWN] if True in slots else [GATE_UP, DOWN]
            may_be = readings(pair.a, pair.b, {part: shapes[part] for part in parts})
            if not may_be or pair.a.shape[0] % shapes[DOWN][0]:
                found.problems.append(
                    f"{shown(pair.key)}: lora_A {list(pair.a.shape)} and lora_B {list(pair.b.shape)} fit "
                    f"neither layout of {shapes[DOWN][0]} experts"
                )
            else:
                read.append((layer, pair, may_be))
    layout = _layout([may_be for _, _, may_be in read], settings, found) if read else ""
    for layer, pair, may_be in read:
        ours = next((layer + part for part, form in may_be if form == layout), None)
        if ours is None:
            continue  # `_layout` has told
        count = modules.shapes[ours][0]
        # PEFT matches patterns with the parameter's name, which the key hides.
        key = pair.key.removesuffix(".base_layer").removesuffix(".experts") + ours.removeprefix(layer)
        a, b = unpack(pair.a, pair.b, count, layout)
        _place(ours, WeightDelta(a, b, settings.scale(key, pair.a.shape[0] // count)), pair, found)


def _layout(pairs: list[set[tuple[str, str]]], settings: PeftConfig, found: _Found) -> str:
    forms = [{form for _, form in may_be} for may_be in pairs]
    possible = set.intersection(*forms)
    if len(possible) == 1:
        return possible.pop()
    if possible and settings.expert_layout is not None:
        return settings.expert_layout
    if possible:
        found.problems.append(
            "the experts' tensors are square, and could be in the layout of PEFT up to 0.18 or in that from "
            f"0.19 on: add the version that wrote them to {CONFIG}, as peft_version"
        )
    else:
        found.problems.append("some experts' tensors are in the layout of PEFT up to 0.18, some in the later")
    return ""


def _report(path: Path, problems: list[str]) -> str:
    lines = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  and {len(problems) - _LISTED} more")
    return f"{path}: the adapter does not fit this model, or is not one that canvaslm runs\n" + "\n".join(
        lines
    )


def stored_base(path: Path) -> str | None:
    """The model that a folder's adapter says it was trained for."""
    return read_peft_config(_named(path, CONFIG)).base


__all__ = ["CONFIG", "TENSORS", "read_peft", "stored_base"]
