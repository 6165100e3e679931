"""Native CPU kernels: C++ behind a plain C ABI, chosen at run time by instruction set.

Nothing here is needed to import canvaslm: ask `available()` first, which compiles the kernels on first use in
a source tree; `notes()` says how to get them when it cannot.
"""

from __future__ import annotations

from .loader import (
    available,
    isa,
    notes,
    problem,
    release_scratch,
    set_threads,
    threads,
    use_isa,
)

__all__ = ["available", "isa", "notes", "problem", "release_scratch", "set_threads", "threads", "use_isa"]
