"""Which tensor of a checkpoint fills which weight: every one accounted for before any is read. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...errors import BadModelFile
from ...model.config import ModelConfig
from ...model.names import WeightNames
from ...model.registry import family_of
from ..resolve import Checkpoint
from ..safetensors_.header import SafetensorsHeader, SafetensorsInfo, shown
from .memory import gigabytes

# Stored types that can become weights: others would need scales that a plain tensor does not carry.
READABLE = ("F64", "F32", "BF16", "F16")
_LISTED = 20

Shape = tuple[int, ...]


@dataclass
class ReadPlan:
    """What to read. `weights` maps our name to the stored tensor; `copies` are stored
    again and should be equal."""

    weights: dict[str, SafetensorsInfo] = field(default_factory=dict)
    copies: list[tuple[SafetensorsInfo, str]] = field(default_factory=list)
    vision: list[SafetensorsInfo] = field(default_factory=list)
    stand_ins: dict[str, str] = field(default_factory=dict)  # weights absent: those that fill them
    notes: list[str] = field(default_factory=list)


def make_plan(checkpoint: Checkpoint, headers: Iterable[SafetensorsHeader], config: ModelConfig) -> ReadPlan:
    """Matches the files' tensors with the model's weights.

    Raises BadModelFile with one list of all that is missing, left over, doubled, or
    of another shape or dtype.
    """
    names = family_of(config).names
    shapes = names.weight_shapes(config)
    plan = ReadPlan()
    problems: list[str] = []
    seen: dict[str, str] = {}
    for header in headers:
        for info in header.tensors.values():
            if info.name in seen:
                problems.append(f"{info.name}: in both {seen[info.name]} and {info.path.name}")
            seen[info.name] = info.path.name
            problems += _assign(plan, info, shapes, names)
    problems += _index_problems(checkpoint, seen)
    problems += _missing(plan, shapes, names)
    if problems:
        raise BadModelFile(_report(checkpoint, problems))
    plan.notes = _notes(plan, names)
    return plan


def _assign(
    plan: ReadPlan, info: SafetensorsInfo, shapes: Mapping[str, Shape], names: WeightNames
) -> list[str]:
    place = names.place_of(info.name)
    if place.role == "vision":
        plan.vision.append(info)
        return []
    # With tied embeddings the model has no head of its own, and a stored one should equal the embedding.
    tied_head = place.name == names.head and names.head not in shapes
    name = names.embedding if tied_head else place.name
    if place.role == "unknown" or name not in shapes:
        return [f"{shown(info.name)}: left over, the model has no such weight"]
    problems = []
    if info.shape != shapes[name]:
        problems.append(f"{info.name}: shape {list(info.shape)}, config.json says {list(shapes[name])}")
    if info.dtype not in READABLE:
        problems.append(f"{info.name}: dtype {info.dtype}, expected one of {', '.join(READABLE)}")
    if place.role == "copy" or tied_head:
        plan.copies.append((info, name))
    elif name in plan.weights:
        problems.append(f"{info.name}: the same weight as {plan.weights[name].name}")
    else:
        plan.weights[name] = info
    return problems


def _missing(plan: ReadPlan, shapes: Mapping[str, Shape], names: WeightNames) -> list[str]:
    """Fills gaps that another tensor may stand for; names those left."""
    stand_in = {name: info for info, name in reversed(plan.copies)}
    problems = []
    for name in shapes:
        if name in plan.weights:
            continue
        if name in stand_in:
            plan.weights[name] = stand_in[name]
        elif (other := names.stand_in(name)) is not None:
            plan.stand_ins[name] = other
        else:
            problems.append(f"{names.to_hf(name)}: missing (shape {list(shapes[name])})")
    return problems


def _index_problems(checkpoint: Checkpoint, seen: Mapping[str, str]) -> list[str]:
    wrong = []
    for name, file in checkpoint.weight_map.items():
        if seen.get(name) != file:
            wrong.append(f"{shown(name)}: the index says it is in {file}, where it is not")
    return wrong


def _report(checkpoint: Checkpoint, problems: list[str]) -> str:
    lines = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  and {len(problems) - _LISTED} more")
    quantised = (checkpoint.read_json("config.json") or {}).get("quantization_config")
    hint = "take the config.json that belongs to these weights, or download both again"
    if isinstance(quantised, dict):
        method = shown(quantised.get("quant_method"))
        hint = (
            f"it is quantised ({method}), which canvaslm does not read: take the bf16 safetensors or a GGUF"
        )
    return f"{checkpoint.source}: the weights do not fit config.json; {hint}\n" + "\n".join(lines)


def _notes(plan: ReadPlan, names: WeightNames) -> list[str]:
    notes = []
    if plan.vision:
        size = gigabytes(sum(info.nbytes for info in plan.vision))
        notes.append(
            f"vision tower skipped ({len(plan.vision)} tensors, {size}): images are not supported yet, "
            "text is unaffected"
        )
    if plan.stand_ins:
        notes.append(names.stand_in_note)
    return notes


__all__ = ["READABLE", "ReadPlan", "make_plan"]
