"""`canvaslm adapter show|merge|convert|push`: what an adapter is, a model with it merged in, PEFT to GGUF and
back, and to a hub."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadConfig, BadModelFile, UsageError
from .adapter_push import Pushing, push_adapter
from .options import grouped

if TYPE_CHECKING:
    from ..model.adapters import Adapter, Deltas
    from ..model.config import ModelConfig
    from ..weights.adapters.find import AdapterPlace
    from ..weights.resolve import Checkpoint


class Action(StrEnum):
    """What to do with an adapter."""

    SHOW = "show"
    MERGE = "merge"
    CONVERT = "convert"
    PUSH = "push"


@grouped
def command(
    action: Annotated[Action, typer.Argument(metavar="ACTION", help="show, merge, convert or push.")],
    adapter: Annotated[
        str, typer.Argument(help="A folder that PEFT wrote, a .gguf file or a hub id.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            help=(
                "To merge: a file ending with .gguf for a GGUF model, a folder for others. To convert: a "
                "file ending with .gguf, or a folder for PEFT. To push: org/name."
            ),
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="The model that the adapter is for: as in canvaslm run."),
    ] = "demo",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    pushing: Pushing = Pushing(),
) -> None:
    """Show an adapter (LoRA), merge it into its model, convert it between PEFT's form and GGUF, or push it.

    Encoding and denoising can be adapted apart, and commonly are. Merged weights and GGUF files serve both,
    so only adapters with equal sides go there; others are served beside their model. A merged GGUF file has
    every tensor in the format it had. Pushed are adapter_config.json, adapter_model.safetensors and
    README.md, which is written first if there is none.

    Examples:
      canvaslm adapter show my-adapter
      canvaslm adapter show org/name -m org/name
      canvaslm adapter merge my-adapter merged-folder -m org/name
      canvaslm adapter merge my-adapter merged.gguf -m model.gguf
      canvaslm adapter convert my-adapter my-adapter.gguf -m model.gguf
      canvaslm adapter convert my-adapter.gguf my-adapter -m model.gguf
      canvaslm adapter push my-adapter org/name -m org/name --private
    """
    from ..weights.adapters.base import base_config
    from ..weights.adapters.find import find_adapter
    from ..weights.resolve import resolve

    _check(action, out, pushing)
    place = find_adapter(adapter)
    checkpoint = resolve(model)
    config = base_config(checkpoint)
    read = _read(place.path, checkpoint, config)
    if out is None:
        _show(place, read, config, json)
    elif action is Action.PUSH:
        push_adapter(place, read, model, str(out), pushing, json)
    elif action is Action.MERGE:
        _merge(read, checkpoint, out, force, json)
    else:
        _convert(place.path, read, checkpoint, config, out, force, json)


def _check(action: Action, out: Path | None, pushing: Pushing) -> None:
    """Raises UsageError for what does not go together, before anything is read."""
    if (out is None) != (action is Action.SHOW):
        raise UsageError(
            "`canvaslm adapter show` writes nothing: leave OUT out"
            if out
            else f"`canvaslm adapter {action}` needs OUT, {_wanted(action)}",
            param="out",
        )
    if action is not Action.PUSH:
        pushing.refuse(action)


def _wanted(action: Action) -> str:
    return "org/name on a hub" if action is Action.PUSH else "the file or folder to write"


def _read(path: Path, checkpoint: Checkpoint, config: ModelConfig) -> Adapter:
    from ..weights.adapters.base import expert_scales
    from ..weights.adapters.peft import stored_base
    from ..weights.adapters.read import adapter_kind, read_adapter
    from ..weights.resolve import DEMO

    kind, place = adapter_kind(path)
    try:
        return read_adapter(path, config, expert_scales(checkpoint, config) if kind == "gguf" else None)
    except BadConfig:
        raise
    except BadModelFile as error:
        if checkpoint.source != DEMO:
            raise
        base = stored_base(place) if kind == "peft" else None
        hint = f", for instance -m {_plain(base)}, which it says it was trained for" if base else ""
        raise BadModelFile(
            f"{error}\n  this is of the demo model; name the adapter's own with -m{hint}"
        ) from error


def _show(place: AdapterPlace, adapter: Adapter, config: ModelConfig, as_json: bool) -> None:
    facts = describe(place, adapter, config)
    if as_json:
        import json

        print(json.dumps(facts, indent=2))
    else:
        print(as_text(facts))


def describe(found: AdapterPlace, adapter: Adapter, config: ModelConfig) -> dict[str, Any]:
    """What there is to say of an adapter, as plain data."""
    from ..weights.adapters.modules import modules_of
    from ..weights.adapters.peft import stored_base
    from ..weights.adapters.read import adapter_kind
    from ..weights.adapters.sides import differing

    kind, place = adapter_kind(found.path)
    return {
        "adapter": found.hub_id or str(place),
        "kind": kind,
        "trained_for": stored_base(place) if kind == "peft" else None,
        "parameters": adapter.parameter_count,
        "equal_sides": not differing(adapter, modules_of(config)),
        "encode": _side(adapter.encode, adapter.encode_digest),
        "denoise": _side(adapter.denoise, adapter.denoise_digest),
    }


def _side(side: Deltas, digest: str) -> dict[str, Any]:
    modules = {
        name: {"shape": list(change.shape), "rank": change.rank, "scale": change.scale}
        for name, change in side.items()
    }
    return {"digest": digest, "modules": modules}


def as_text(facts: dict[str, Any]) -> str:
    """The page a person reads."""
    form = "PEFT folder" if facts["kind"] == "peft" else "GGUF file"
    rows = [("adapter", f"{facts['adapter']} ({form})"), ("parameters", f"{facts['parameters']:,}")]
    if facts["trained_for"]:
        rows.append(("trained for", facts["trained_for"]))
    if facts["equal_sides"]:
        rows.append(("sides", "equal: it can be merged and converted"))
    else:
        rows.append(("sides", "encoding and denoising differ: it is served beside its model, not merged"))
    lines = [f"{label:<14}{_plain(value)}" for label, value in rows]
    for side in ("encode", "denoise"):
        modules = facts[side]["modules"]
        lines += ["", f"{side}: {len(modules)} matrices" + (f", {facts[side]['digest']}" if modules else "")]
        lines += [f"  {line}" for line in _kinds(modules)]
    return "\n".join(lines)


def _kinds(modules: dict[str, Any]) -> list[str]:
    """One line for each kind of module, rank and scale, with the number of its layers."""
    groups: dict[tuple[str, int, float], list[str]] = {}
    for name, about in modules.items():
        head, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        kind = inner if head == "layers" else name
        groups.setdefault((kind, about["rank"], about["scale"]), []).append(number)
    return [
        f"{kind:<28}rank {rank:<5}scale {scale:<8.4g}{_layers(kind, found)}".rstrip()
        for (kind, rank, scale), found in groups.items()
    ]


def _layers(kind: str, found: list[str]) -> str:
    if kind.startswith("self_conditioning"):
        return ""
    return f" in {len(found)} layer{'s' if len(found) > 1 else ''}"


def _plain(text: str) -> str:
    """File names and what files say come from strangers: no control character reaches the terminal."""
    return text if text.isprintable() else ascii(text)


def _merge(adapter: Adapter, checkpoint: Checkpoint, out: Path, force: bool, as_json: bool) -> None:
    from ..weights.adapters.merge import merge_adapter
    from .quantize import progress_bar

    with progress_bar("merging") as progress:
        reports = merge_adapter(adapter, checkpoint, out, force=force, progress=progress)
    errors = {report.name: report.error for report in reports if report.error > 0}
    worst = max(errors, key=lambda name: errors[name], default=None)
    note = f"packing again changed {worst} most: by {errors[worst]:.3%}" if worst is not None else None
    _tell(out, as_json, note, relative_rmse=errors)


def _convert(
    path: Path,
    adapter: Adapter,
    checkpoint: Checkpoint,
    config: ModelConfig,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    from ..weights.adapters.base import expert_scales
    from ..weights.adapters.gguf import write_gguf_adapter
    from ..weights.adapters.peft_write import write_peft
    from ..weights.adapters.read import adapter_kind

    _, place = adapter_kind(path)
    if out.suffix.lower() == ".gguf":
        scales = expert_scales(checkpoint, config)
        write_gguf_adapter(adapter, out, config, scales, force=force, sources=(place,))
    else:
        if out.exists() and out.samefile(place):
            raise UsageError(f"{out}: is the adapter itself; name another folder", param="out")
        write_peft(adapter, out, config, base=checkpoint.source, force=force)
    _tell(out, as_json, None)


def _tell(out: Path, as_json: bool, note: str | None, **more: Any) -> None:
    from ..weights.loading.memory import gigabytes

    size = sum(p.stat().st_size for p in out.iterdir()) if out.is_dir() else out.stat().st_size
    if as_json:
        import json

        print(json.dumps({"out": str(out), "bytes": size, **more}, indent=2))
        return
    print(f"{out}: {gigabytes(size)}")
    if note:
        print(f"note: {note}")


__all__ = ["Action", "as_text", "command", "describe"]
