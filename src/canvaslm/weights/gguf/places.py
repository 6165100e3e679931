"""Which tensors of a GGUF file fill which of a model's weights: every one accounted for. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import BadModelFile
from ...model.config import ModelConfig
from ...model.names import GGUFNames, WeightNames
from ...model.registry import family_of
from ..safetensors_.header import shown
from .file import GGUFFile

__all__ = ["Places", "gguf_names", "place_weights"]

_LISTED = 20


def gguf_names(config: ModelConfig) -> GGUFNames:
    """The family's names in GGUF files. Raises BadModelFile for a family that has none."""
    family = family_of(config)
    if family.gguf is None:
        raise BadModelFile(f"models of type {family.name} have no GGUF form: use the safetensors folder")
    return family.gguf


@dataclass
class Places:
    """Which GGUF tensors fill which of our weights: one, or the gate and up halves
    (joined along dimension 1)."""

    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stand_ins: dict[str, str] = field(default_factory=dict)  # weights absent: those that fill them
    notes: list[str] = field(default_factory=list)


def place_weights(file: GGUFFile, config: ModelConfig) -> Places:
    """Accounts for every tensor of the file and every weight of the model.

    Raises BadModelFile with one list of all that is missing, left over, doubled or of the wrong shape.
    """
    names, theirs = family_of(config).names, gguf_names(config)
    shapes = names.weight_shapes(config)
    places, problems = Places(), []
    halves: dict[str, dict[int, str]] = {}
    for name, info in file.tensors.items():
        if theirs.is_table(name):
            continue
        found = theirs.from_gguf(name)
        if found is None or found[0] not in shapes:
            problems.append(f"{shown(name)}: left over, the model has no such weight")
        elif found[0] in places.sources or (found[1] is None and found[0] in halves):
            problems.append(f"{name}: a second tensor for the same weight")
        else:
            ours, half = found
            expected = shapes[ours] if half is None else _half_shape(shapes[ours])
            if info.shape != expected:
                problems.append(f"{name}: shape {list(info.shape)}, the metadata says {list(expected)}")
            if half is None:
                places.sources[ours] = (name,)
            else:
                halves.setdefault(ours, {})[half] = name
    problems += _join_halves(places, halves, theirs)
    problems += _missing(places, shapes, names, theirs)
    if problems:
        raise BadModelFile(_report(file, problems))
    if places.stand_ins:
        places.notes.append(names.stand_in_note.replace("checkpoint", "file"))
    return places


def _join_halves(places: Places, halves: Mapping[str, Mapping[int, str]], theirs: GGUFNames) -> list[str]:
    problems = []
    for ours, pair in halves.items():
        if ours in places.sources:
            problems.append(f"{theirs.to_gguf(ours)}: stored whole and in halves")
        elif len(pair) == 2:
            places.sources[ours] = (pair[0], pair[1])
    return problems


def _half_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[1] // 2, *shape[2:])


def _missing(
    places: Places, shapes: Mapping[str, tuple[int, ...]], names: WeightNames, theirs: GGUFNames
) -> list[str]:
    problems = []
    for name in shapes:
        if name in places.sources:
            continue
        other = names.stand_in(name)
        if other is not None:
            places.stand_ins[name] = other
        else:
            problems.append(f"{theirs.to_gguf(name)}: missing (shape {list(shapes[name])})")
    return problems


def _report(file: GGUFFile, problems: list[str]) -> str:
    lines = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  and {len(problems) - _LISTED} more")
    return f"{file.path}: the tensors do not fit the metadata; download it again\n" + "\n".join(lines)
