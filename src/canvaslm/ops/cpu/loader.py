"""Finds, loads and describes the compiled library; everything else asks `library()`.

Order: the library installed with the package, then one compiled on first use (see `build`).
`CANVASLM_NATIVE=0` turns it off, `CANVASLM_NATIVE=/path/to/library` takes that one;
`CANVASLM_ISA=plain|avx2|avx512|neon` picks an instruction set; `CANVASLM_THREADS` sets the threads, which
otherwise follow the process's affinity mask.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from pathlib import Path

from . import build
from .structures import STRUCTURES

_ABI = 4
_lock = threading.Lock()
_loaded: ctypes.CDLL | None = None
_problem: str | None = None
_notes: list[str] = []

_pointer, _size, _int, _long, _float = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_float,
)

# name: (result, arguments); the declarations of api.cpp.
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "canvas_abi": (_int, []),
    "canvas_struct_size": (_size, [ctypes.c_char_p]),
    "canvas_isa": (ctypes.c_char_p, []),
    "canvas_use_isa": (_int, [ctypes.c_char_p]),
    "canvas_set_threads": (None, [_int]),
    "canvas_threads": (_int, []),
    "canvas_alloc": (_pointer, [_size]),
    "canvas_free": (None, [_pointer, _size]),
    "canvas_release_scratch": (None, []),
    "canvas_repacked_bytes": (_size, [_int, _int, _int]),
    "canvas_repack": (_int, [_int, _int, _pointer, _int, _int, _pointer]),
    "canvas_transpose": (None, [_int, _int, _pointer, _int, _int, _pointer]),
    "canvas_gather": (None, [_int, _pointer, _int, _pointer, _int, _pointer]),
    "canvas_matmul": (None, [_int, _pointer, _int, _int, _pointer, _long, _int, _pointer, _long]),
    "canvas_matmul_back": (None, [_int, _pointer, _int, _int, _pointer, _long, _int, _pointer, _long]),
    "canvas_experts": (
        _int,
        [_int, _pointer, _int, _pointer, _int, _int, _int, _int, _pointer, _int, _pointer, _pointer, _int,
         _pointer],
    ),
    "canvas_head": (None, [_pointer]),
    "canvas_soft": (None, [_pointer]),
    "canvas_block_bytes": (_size, [_int, _int, _int]),
    "canvas_append": (None, [_pointer]),
    "canvas_attention": (None, [_pointer]),
    "canvas_rms_norm": (None, [_pointer, _pointer, _pointer, _float, _float, _int, _int, _pointer]),
    "canvas_join": (
        None,
        [_pointer, _pointer, _pointer, _pointer, _pointer, _pointer, _float, _float, _int, _int, _pointer],
    ),
    "canvas_norm_rope": (None, [_pointer, _pointer, _pointer, _pointer, _float, _int, _int, _int, _long]),
    "canvas_route": (
        None,
        [_pointer, _pointer, _int, _pointer, _int, _int, _pointer, _int, _int, _float, _pointer, _pointer],
    ),
    "canvas_keep": (
        None,
        [_pointer, _int, _int, _pointer, _pointer, _pointer, _pointer, _pointer, _pointer, _pointer,
         _pointer],
    ),
    "canvas_take": (
        None, [_int, _pointer, _pointer, _pointer, ctypes.c_double, _pointer, _pointer, _pointer, _pointer],
    ),
    "canvas_insert": (
        None,
        [_int, _pointer, _pointer, _pointer, _pointer, ctypes.c_double, _pointer, _pointer, _pointer,
         _pointer],
    ),
    "canvas_ceiling": (ctypes.c_double, [_int]),
}  # fmt: skip


def library() -> ctypes.CDLL:
    """The loaded library. Raises RuntimeError with the reason when there is none."""
    global _loaded, _problem
    if _loaded is not None:  # set once, and for good
        return _loaded
    with _lock:
        if _loaded is None and _problem is None:
            try:
                _loaded = _open()
            except (build.BuildFailed, OSError) as error:
                _problem = " ".join(str(error).split())
                remedy = error.remedy if isinstance(error, build.BuildFailed) else _other_library()
                _notes[:] = [
                    f"the native kernels are not available ({_problem}): quantised models run in plain "
                    f"PyTorch, several times slower; for the fast path {remedy}"
                ]
        if _loaded is None:
            raise RuntimeError(f"the native kernels are not available: {_problem}")
        return _loaded


def _open() -> ctypes.CDLL:
    path, ours = _path()
    try:
        lib = _mapped(path)
    except OSError:
        if not ours:
            raise
        # It was built for other libraries of the system, or on another machine with the same home folder.
        lib = _mapped(path := build.cached_library(anew=True))
    _declare(lib, path)
    if ours and build.is_temporary(path):
        _notes[:] = [
            f"the native kernels are kept in {path.parent}, which the system may clear: the user's cache "
            "folder cannot be written; XDG_CACHE_HOME may name another"
        ]
    wanted = os.environ.get("CANVASLM_ISA")
    if wanted and lib.canvas_use_isa(wanted.encode()):
        raise build.BuildFailed(
            f"this machine cannot run CANVASLM_ISA={wanted}", "unset CANVASLM_ISA, or name another"
        )
    lib.canvas_set_threads(default_threads())
    _keep_freed_memory()
    return lib


def _mapped(path: Path) -> ctypes.CDLL:
    """Raises OSError, for one that is cut short too: the system would map it, and kill us on touching it."""
    if _ends_early(path):
        raise OSError(f"{path} is cut short")
    return ctypes.CDLL(str(path))


def _ends_early(path: Path) -> bool:
    """Whether an ELF file (of 64 bits, little endian) ends before its table of sections, which is written
    last."""
    with open(path, "rb") as file:
        head = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if head[:6] != b"\x7fELF\x02\x01"[: len(head)]:
        return False
    if len(head) < 64:
        return True
    start, width, count = struct.unpack("<Q10xHH", head[0x28:0x3E])
    return bool(start + width * count > size)


def _declare(lib: ctypes.CDLL, path: Path) -> None:
    """Tells ctypes what the functions take. Raises BuildFailed for a library that is not this version's."""
    if not hasattr(lib, "canvas_abi"):
        raise build.BuildFailed(f"{path} is another library, not canvaslm's kernels", _other_library())
    other = f"{path} is of another version of canvaslm"
    if lib.canvas_abi() != _ABI:
        raise build.BuildFailed(
            f"{other}: its interface has number {lib.canvas_abi()}, not {_ABI}", _other_library()
        )
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name, None)
        if function is None:
            raise build.BuildFailed(f"{other}: it has no {name}", _other_library())
        function.restype, function.argtypes = result, arguments
    for structure in STRUCTURES:
        found, wanted = lib.canvas_struct_size(structure.__name__.encode()), ctypes.sizeof(structure)
        if found != wanted:
            raise build.BuildFailed(
                f"{other}: {structure.__name__} has {found} bytes there, {wanted} here", _other_library()
            )


def _keep_freed_memory() -> None:
    """Has glibc reuse the megabytes of one operation's result for the next.

    By default it hands them back to the system and takes fresh pages, and their page faults (1.8 us each
    where this was measured, 5,000 for the products of half a layer) cost 0.2 s of a full-size step. Other C
    libraries: nothing to do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8
    mallopt(mmap_threshold, 32 << 20)  # the largest it takes
    mallopt(trim_threshold, 512 << 20)
    mallopt(arena_max, 1)  # arenas of other threads are cut to 64 MiB pieces, which it unmaps all the same


def _path() -> tuple[Path, bool]:
    """The library, and whether it is one that `build` made and can make again."""
    choice = os.environ.get("CANVASLM_NATIVE", "")
    if choice == "0":
        raise build.BuildFailed("switched off by CANVASLM_NATIVE=0", "unset it")
    if os.sep in choice:
        return Path(choice), False
    installed = _installed()
    return (installed, False) if installed.exists() else (build.cached_library(), True)


def default_threads() -> int:
    """$CANVASLM_THREADS, else the processors this process may use."""
    wanted = os.environ.get("CANVASLM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available() -> bool:
    """Whether the kernels can be used. Compiles them if need be; `notes` says why they cannot."""
    try:
        library()
    except RuntimeError:
        return False
    return True


def ready() -> bool:
    """Whether the kernels can be used at once: they are loaded, or lie compiled."""
    with _lock:
        if _loaded is not None or _problem is not None:
            return _loaded is not None
    try:
        return _is_there() and available()
    except (build.BuildFailed, OSError):
        return False


def _is_there() -> bool:
    choice = os.environ.get("CANVASLM_NATIVE", "")
    return choice != "0" and (os.sep in choice or _installed().exists() or build.is_cached())


def _installed() -> Path:
    return Path(__file__).parent / build.LIBRARY


def notes() -> list[str]:
    """What a user should know of the kernels, once they have been asked for: why there are none and what to
    do, or that they are kept in a place of the system's. Nothing where they were switched off."""
    return [] if os.environ.get("CANVASLM_NATIVE") == "0" else list(_notes)


def _other_library() -> str:
    """The remedy for a library that cannot be used."""
    if os.sep in os.environ.get("CANVASLM_NATIVE", ""):
        return "unset CANVASLM_NATIVE, or let it name this version's library"
    if _installed().exists():
        return "reinstall canvaslm"
    return "let XDG_CACHE_HOME name another folder, one that libraries may be loaded from"


def problem() -> str | None:
    """Why the kernels are not available, or None."""
    return _problem


def isa() -> str:
    """The instruction set in use: avx512, avx2, neon or plain."""
    return library().canvas_isa().decode()


def use_isa(name: str) -> None:
    """Switches instruction sets, for tests and benches. Raises ValueError when the machine lacks it."""
    if library().canvas_use_isa(name.encode()):
        raise ValueError(f"this machine cannot run {name!r} kernels")


def set_threads(count: int) -> None:
    """Threads of the following operations, at least 1."""
    library().canvas_set_threads(count)


def threads() -> int:
    """Threads in use."""
    return library().canvas_threads()


def release_scratch() -> None:
    """Gives the kernels' working memory back; the next operation takes what it needs again."""
    library().canvas_release_scratch()


__all__ = [
    "available",
    "default_threads",
    "isa",
    "library",
    "notes",
    "problem",
    "ready",
    "release_scratch",
    "set_threads",
    "threads",
    "use_isa",
]
