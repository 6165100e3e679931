"""Compiles the kernels: one shared library, no Python in it, so one per platform serves every Python.

`setup.py` calls `compile_library` when the package is installed; a source tree compiles on first use into a
cache folder, named by a hash of sources, flags and compiler. The kernel file is compiled once per instruction
set and the library picks one by asking the processor: nothing here depends on the machine that builds.
Standard library only, since setup.py loads this file by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "libcanvas.dll" if sys.platform == "win32" else "libcanvas.so"

_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off", "-w"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma", "-mf16c"]


class BuildFailed(Exception):
    """No compiler, or it refused; the message says which and what to do."""


def find_compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, then the system's, then the `ziglang`
    wheel. Raises BuildFailed."""
    if os.environ.get("CXX"):
        return os.environ["CXX"].split()
    for name in ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path:
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise BuildFailed("no C++ compiler found; install g++ or clang++, or `pip install ziglang`")


def _is_zig(compiler: list[str]) -> bool:
    return "ziglang" in compiler or Path(compiler[0]).stem == "zig"


def units(machine: str | None = None) -> list[tuple[str, str, list[str]]]:
    """(object name, source, extra flags) of every compilation on `machine` (default: this one)."""
    machine = (machine or platform.machine()).lower()
    parts = [
        ("plain", "kernels.cpp", ["-DCANVAS_ISA=plain"]),
        ("repack", "repack.cpp", []),
        ("pool", "pool.cpp", []),
    ]
    if machine in ("x86_64", "amd64"):
        parts.append(("avx512", "kernels.cpp", ["-DCANVAS_ISA=avx512", "-DCANVAS_AVX512", *_AVX512]))
        parts.append(
            ("avx2", "kernels.cpp", ["-DCANVAS_ISA=avx2", "-DCANVAS_AVX2", "-mavx2", "-mfma", "-mf16c"])
        )
        return [*parts, ("api", "api.cpp", ["-DCANVAS_X86"])]
    if machine in ("aarch64", "arm64"):
        parts.append(("neon", "kernels.cpp", ["-DCANVAS_ISA=neon", "-mcpu=generic+dotprod"]))
        return [*parts, ("api", "api.cpp", ["-DCANVAS_ARM"])]
    return [*parts, ("api", "api.cpp", [])]


def compile_library(target: Path, compiler: list[str] | None = None) -> Path:
    """Compiles and links everything into `target`. Raises BuildFailed with the compiler's words."""
    compiler = compiler or find_compiler()
    flags = [*_FLAGS, *([] if _is_zig(compiler) else ["-falign-loops=64"])]
    with tempfile.TemporaryDirectory(prefix="canvaslm-build-") as folder:

        def one(unit: tuple[str, str, list[str]]) -> str:
            name, source, extra = unit
            made = str(Path(folder) / f"{name}.o")
            _run([*compiler, *flags, *extra, "-c", str(SOURCES / source), "-o", made])
            return made

        with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as workers:
            objects = list(workers.map(one, units()))
        linked = Path(folder) / LIBRARY
        _run([*compiler, "-shared", *objects, "-o", str(linked), *_link_flags(compiler)])
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of our own in the target's folder, then a rename: readers never see half a library.
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(linked, partial)
        os.replace(partial, target)
    return target


def _link_flags(compiler: list[str]) -> list[str]:
    if sys.platform == "win32":
        return []
    # The C++ runtime goes in, so that the library runs beside any other version of it.
    static = [] if sys.platform == "darwin" or _is_zig(compiler) else ["-static-libstdc++", "-static-libgcc"]
    return ["-lpthread", *static]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]} could not run: {error}") from error
    if done.returncode:
        raise BuildFailed(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-2000:]}")


def source_hash(compiler: list[str]) -> str:
    """Names a build: changes with any source, flag, compiler or machine."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    for word in (*compiler, *_FLAGS, str(units()), sys.platform):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:16]


def cache_root() -> Path:
    """Where builds are kept: $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "canvaslm" / "native"


def cached_library() -> Path:
    """The library for this source tree, compiled now if it is not there yet. Raises BuildFailed."""
    compiler = find_compiler()
    folder = cache_root() / source_hash(compiler)
    target = folder / LIBRARY
    if target.exists():
        return target
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            return target if target.exists() else compile_library(target, compiler)
    except OSError as error:
        raise BuildFailed(f"cannot write {folder}: {error}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time, across processes."""
    with open(path, "w") as handle:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


__all__ = [
    "LIBRARY",
    "SOURCES",
    "BuildFailed",
    "cache_root",
    "cached_library",
    "compile_library",
    "find_compiler",
    "source_hash",
    "units",
]
