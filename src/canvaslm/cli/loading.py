"""Loading a model with a progress line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .glyphs import cut, visible
from .terminal import abilities, terminal_size

if TYPE_CHECKING:
    from ..session import Progress, Session
    from .options import Loading

_BAR_CELLS = 24
_INTERVAL = 0.1  # seconds between redraws of the line


def open_session(loading: Loading, quiet: bool = False, **engine: Any) -> Session:
    """Loads what the flags say; progress goes to standard error, if that is a terminal.
    Raises as `canvaslm.load`.

    `engine`: further arguments of `canvaslm.load`.
    """
    with progress_line(loading.model or "the demo model", quiet) as progress:
        from ..session import load

        return load(
            loading.model,
            device=loading.device,
            dtype=loading.dtype,
            threads=loading.threads,
            progress=progress,
            kv_type=loading.kv_type,
            deterministic=loading.deterministic,
            self_conditioning=loading.self_conditioning,
            **engine,
        )


@contextmanager
def progress_line(name: str, quiet: bool = False) -> Iterator[Progress | None]:
    """A callable for bytes read and bytes in all that redraws one line; None where nobody would see it."""
    stream = sys.stderr
    able = abilities(stream, os.environ)
    if quiet or not able.live:
        yield None
        return
    drawn_at = 0.0

    def draw(done: int, total: int) -> None:
        nonlocal drawn_at
        now = time.monotonic()
        if now - drawn_at >= _INTERVAL or done >= total:
            drawn_at = now
            stream.write(
                f"\r{cut(progress_text(name, done, total, able.unicode), terminal_size(stream)[0] - 1)}\x1b[K"
            )
            stream.flush()

    stream.write(f"\r{cut(f'opening {visible(name)}', terminal_size(stream)[0] - 1)}\x1b[K")
    stream.flush()
    try:
        yield draw
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


def progress_text(name: str, done: int, total: int, unicode: bool) -> str:
    """As `loading NAME ━━━━╌╌╌╌ 1.2 of 3.4 GB`."""
    full, empty = ("━", "╌") if unicode else ("#", ".")
    filled = round(_BAR_CELLS * done / total) if total else _BAR_CELLS
    unit, size = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
    bar = full * filled + empty * (_BAR_CELLS - filled)
    return f"loading {visible(name)} {bar} {done / size:.1f} of {total / size:.1f} {unit}"


__all__ = ["open_session", "progress_line", "progress_text"]
