"""`canvaslm show MODEL`: what a model is, what it needs and which sampling defaults it brings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..diffusion import PARAMETERS, PRESETS, Params
from ..errors import UsageError
from .output import log

if TYPE_CHECKING:
    from ..weights.description import Description

# Bits per weight of the types a model can be held in.
_HELD = (("float32", 32.0), ("bfloat16", 16.0), ("float16", 16.0))
_CONTEXTS = (1024, 8192, 32_768)

_PRESET = "CANVASLM_PRESET"

Rows = list[tuple[str, str]]


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a .safetensors or .gguf file, or a hub id; the demo model without it."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Instead of a model, list which kernel runs each quantised format on this machine.",
        ),
    ] = False,
) -> None:
    """Show a model's architecture, sizes, memory, tokenizer and sampling defaults,
    without loading its weights.

    Examples:
      canvaslm show
      canvaslm show --kernels
      canvaslm show model.gguf --json
    """
    if kernels:
        _show_kernels(model, json)
        return
    from ..weights.describe import describe
    from ..weights.resolve import resolve

    description = describe(resolve(model))
    if json:
        import json as json_module

        print(json_module.dumps(as_json(description, os.environ), indent=2))
    else:
        print(as_text(description, os.environ))


def _show_kernels(model: str | None, json: bool) -> None:
    from .show_kernels import kernels_json, kernels_text

    if model is not None:
        raise UsageError("--kernels is about this machine: leave the model out", param="kernels")
    if json:
        import json as json_module

        print(json_module.dumps(kernels_json(), indent=2))
    else:
        print(kernels_text())
    from ..ops import cpu

    for note in cpu.notes():
        log(f"note: {note}")


def sampling(description: Description, environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Sampling parameter -> (value, where it comes from): the environment, the checkpoint or the default.

    Variables are those of `canvaslm run`'s flags, CANVASLM_ and the parameter in capitals; a flag there beats
    them. Raises UsageError for a variable that holds no such value.
    """
    from ..weights.generation import sampling_defaults, source_of

    chosen, origin = sampling_defaults(description.generation, source_of(description.kind))
    params = Params(**chosen)
    preset = _preset(environment)
    found: dict[str, tuple[Any, str]] = {}
    for name, source in origin.items():
        value, variable = getattr(params, name), f"CANVASLM_{name.upper()}"
        if environment.get(variable):
            found[name] = (_read(variable, environment[variable], name), f"environment {variable}")
        elif name in preset:
            found[name] = (preset[name], f"environment {_PRESET} ({environment[_PRESET]})")
        else:
            found[name] = (value, source)
    return found


def _preset(environment: Mapping[str, str]) -> Mapping[str, Any]:
    name = environment.get(_PRESET)
    if not name:
        return {}
    if name not in PRESETS:
        raise UsageError(f"{_PRESET}={name!r}: choose one of {', '.join(PRESETS)}", param="preset")
    return PRESETS[name]


def _read(variable: str, text: str, name: str) -> Any:
    """The value of a parameter that the variable's text stands for."""
    try:
        return PARAMETERS[name].read(text)
    except UsageError as error:
        raise UsageError(f"{variable}={text!r}: {error}", name) from error


def as_json(description: Description, environment: Mapping[str, str]) -> dict[str, Any]:
    """The whole description as plain data; sizes in bytes."""
    from dataclasses import asdict

    from ..model.registry import family_of
    from ..weights.generation import stop_tokens
    from ..weights.loading.memory import available_memory

    d = description
    return {
        "model": d.source,
        "kind": d.kind,
        "files": [{"name": name, "bytes": size} for name, size in d.files],
        "architecture": {"model_type": family_of(d.config).model_types[0], **asdict(d.config)},
        "parameters": {
            "total": d.parameters,
            "active": d.active_parameters,
            "vision_skipped": d.vision_parameters,
            "parts": d.parts,
        },
        "stored_bytes": d.stored,
        "memory_bytes": {
            "weights": {name: d.weight_bytes(bits) for name, bits in _HELD},
            "context_bfloat16": {str(tokens): d.context_bytes(tokens, 2) for tokens in _CONTEXTS},
            "available": available_memory(),
        },
        "tokenizer": None if d.tokenizer is None else asdict(d.tokenizer),
        "stop_tokens": list(stop_tokens(d.generation, d.config.eos_token_ids)),
        "sampling": {
            name: {"value": value, "from": source}
            for name, (value, source) in sampling(d, environment).items()
        },
        "notes": d.notes,
    }


def as_text(description: Description, environment: Mapping[str, str]) -> str:
    """The page a person reads."""
    sections = [
        ("Model", _model_rows(description)),
        ("Architecture", _architecture_rows(description)),
        ("Parameters", _parameter_rows(description)),
        ("Memory", _memory_rows(description)),
        ("Tokenizer", _tokenizer_rows(description)),
        ("Sampling", _sampling_rows(description, environment)),
        ("Notes", [("", note) for note in description.notes]),
    ]
    pages = [_section(title, rows) for title, rows in sections if rows]
    return "\n\n".join(pages)


def _section(title: str, rows: Rows) -> str:
    lines = [f"  {label:<22}{_plain(value)}" if label else f"  {_plain(value)}" for label, value in rows]
    return "\n".join([title, *lines])


def _plain(text: str) -> str:
    """File names and notes come from strangers: no control character reaches the terminal."""
    return text if text.isprintable() else ascii(text)


def _model_rows(d: Description) -> Rows:
    from ..weights.loading.memory import gigabytes

    shown = ", ".join(f"{name} ({gigabytes(size)})" for name, size in d.files[:3])
    more = f" and {len(d.files) - 3} more" if len(d.files) > 3 else ""
    stored = ", ".join(f"{name} {gigabytes(size)}" for name, size in d.stored.items())
    return [("source", f"{d.source} ({d.kind})"), ("files", shown + more), ("stored as", stored)]


def _architecture_rows(d: Description) -> Rows:
    from ..model.registry import family_of

    c = d.config
    return [
        *family_of(c).summary(c),
        ("canvas", f"{c.canvas_length} tokens"),
        ("longest context", f"{c.max_position_embeddings:,} tokens"),
        ("vocabulary", f"{c.vocab_size:,}, head {'tied' if c.tie_word_embeddings else 'separate'}"),
        ("vision tower", _vision(d)),
    ]


def _vision(d: Description) -> str:
    if not d.vision_parameters:
        return "none in the checkpoint"
    return f"present ({_count(d.vision_parameters)} parameters), not used: text only"


def _parameter_rows(d: Description) -> Rows:
    rows = [("total", _count(d.parameters)), ("active per token", _count(d.active_parameters))]
    return rows + [(f"  {part}", f"{_count(n)} ({n / d.parameters:.1%})") for part, n in d.parts.items()]


def _memory_rows(d: Description) -> Rows:
    from ..weights.loading.memory import available_memory, gigabytes

    free = available_memory()
    rows = [(f"weights in {name}", gigabytes(d.weight_bytes(bits))) for name, bits in _HELD]
    for tokens in _CONTEXTS:
        if tokens <= d.config.max_position_embeddings:
            size = gigabytes(d.context_bytes(tokens, 2))
            rows.append((f"context of {tokens // 1024}k", f"{size} (bfloat16; double in float32)"))
    return [*rows, ("free here", "unknown" if free is None else gigabytes(free))]


def _tokenizer_rows(d: Description) -> Rows:
    from ..weights.generation import stop_tokens

    c, t = d.config, d.tokenizer
    stops = ", ".join(str(token) for token in stop_tokens(d.generation, c.eos_token_ids)) or "none"
    ids = ("stop, pad, begin ids", f"{stops}; {c.pad_token_id}; {c.bos_token_id}")
    if t is None:
        return [("file", "none: text cannot be encoded, only token ids"), ids]
    return [
        ("file", f"{t.source}, {t.kind}, {t.vocabulary:,} tokens, {t.special} of them special"),
        ("chat template", t.template or "none: prompts are taken as plain text"),
        ids,
    ]


def _sampling_rows(d: Description, environment: Mapping[str, str]) -> Rows:
    rows = []
    for name, (value, source) in sampling(d, environment).items():
        rows.append((name, f"{'random' if value is None else value!s:<16} {source}"))
    return rows


def _count(number: int) -> str:
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)


__all__ = ["as_json", "as_text", "command", "sampling"]
