"""`canvaslm pack MODEL.gguf`: the packed file beside a model, with which it opens in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A quantised .gguf file, or a hub id of one.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where to write; MODEL.gguf.packed, beside the model, without it."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads. Without it: all cores.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the packed file if it is there.")] = False,
) -> None:
    """Repack a GGUF file's weights once, as this machine's CPU reads them, so that
    the model opens in seconds.

    The packed file takes about as much disk as the model. Every command finds it beside the model by itself,
    maps it into memory and shares it with other processes; the GGUF file is still needed. A packed file that
    does not fit the model, the machine or this version is not used, and a note says so.

    Examples:
      canvaslm quantize demo demo-q8.gguf Q8_0 && canvaslm pack demo-q8.gguf
      canvaslm pack model.gguf
      canvaslm pack model.gguf --force                 # anew, after an update of canvaslm or of the model
      ln -s /shared/model.gguf . && canvaslm pack model.gguf   # where the model's own folder is read-only
    """
    from ..errors import UsageError
    from ..ops import cpu
    from ..weights.loading.memory import gigabytes
    from ..weights.packed.file import packed_path
    from ..weights.packed.write import write_packed
    from ..weights.resolve import resolve
    from .quantize import progress_bar

    checkpoint = resolve(model)
    if checkpoint.kind != "gguf":
        raise UsageError(f"{model}: is not a GGUF file; only those are packed", param="model")
    if threads is not None and cpu.available():
        cpu.set_threads(threads)
    with progress_bar("packing") as progress:
        written = write_packed(checkpoint.files[0], out, force=force, progress=progress)
    print(f"{written.path}: {written.weights} weights, {gigabytes(written.size)}")
    found = packed_path(written.model)
    if written.path.resolve() != found.resolve():
        print(f"note: it is used once it lies beside the model, as {found}")


__all__ = ["command"]
