"""`canvaslm convert MODEL OUT`: safetensors to GGUF, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A folder, a .safetensors or .gguf file, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="A file ending with .gguf, or a folder for safetensors.")],
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help=(
                "BF16, F16, F32 or, for GGUF, any type of canvaslm quantize; what the model is stored in "
                "without it."
            ),
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List every tensor, not kinds of tensors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert a model between safetensors and GGUF; OUT's name says which way.

    Examples:
      canvaslm convert demo demo.gguf
      canvaslm convert demo.gguf demo-folder
      canvaslm convert org/name model.gguf --type Q4_K_M
    """
    kind = type.upper() if type else None
    if out.suffix.lower() == ".gguf":
        from .quantize import write_and_report

        write_and_report(model, out, kind, force=force, every=every, json=json)
    else:
        _export(model, out, kind, force=force, json=json)


def _export(model: str, out: Path, kind: str | None, *, force: bool, json: bool) -> None:
    from ..errors import UsageError
    from ..weights.gguf.export import export_folder
    from ..weights.resolve import resolve
    from .quantize import progress_bar

    checkpoint = resolve(model)
    if checkpoint.kind != "gguf":
        raise UsageError(
            f"{model} is safetensors already; name a file ending with .gguf to convert it", param="out"
        )
    with progress_bar("unpacking") as progress:
        export_folder(checkpoint.files[0], out, kind=kind, force=force, progress=progress)
    size = sum(path.stat().st_size for path in out.iterdir())
    if json:
        import json as json_module

        print(json_module.dumps({"out": str(out), "bytes": size}))
    else:
        from ..weights.loading.memory import gigabytes

        print(f"{out}: {gigabytes(size)}")


__all__ = ["command"]
