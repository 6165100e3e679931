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
import stat
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

_OTHER_COMPILER = "mend what the compiler says, or let CXX name another C++ compiler, and run again"


class BuildFailed(Exception):
    """No compiler, or it refused, or there is no place for what it makes; `remedy` says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


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
    raise BuildFailed(
        "no C++ compiler found", "install g++ or clang++ (or `pip install ziglang`) and run again"
    )


def _is_zig(compiler: list[str]) -> bool:
    return "ziglang" in compiler or Path(compiler[0]).stem == "zig"


def units(machine: str | None = None) -> list[tuple[str, str, list[str]]]:
    """(object name, source, extra flags) of every compilation on `machine` (default: this one)."""
    machine = (machine or platform.machine()).lower()
    parts = [
        ("plain", "kernels.cpp", ["-DCANVAS_ISA=plain"]),
        ("repack", "repack.cpp", []),
        ("pool", "pool.cpp", []),
        ("lattice", "lattice.cpp", []),
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
        try:
            shutil.copyfile(linked, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
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
        raise BuildFailed(f"{command[0]} could not run: {error}", _OTHER_COMPILER) from error
    if done.returncode:
        said = done.stderr[-2000:].strip()
        raise BuildFailed(f"{' '.join(command[:3])} ... failed:\n{said}", _OTHER_COMPILER)


def source_hash(compiler: list[str]) -> str:
    """Names a build: changes with any source, flag, compiler or machine."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    for word in (*compiler, *_FLAGS, str(units()), sys.platform):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:16]


def cache_root() -> Path:
    """Where builds are kept: $XDG_CACHE_HOME or ~/.cache. Raises OSError for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise OSError("this user has no home folder")
    return Path(base) / "canvaslm" / "native"


def temporary_root() -> Path:
    """Where builds are kept that `cache_root` does not take: a folder of this user alone, whose name anybody
    can guess. Raises OSError where somebody else was there first."""
    root = _temporary_name()
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if sys.platform != "win32":
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise OSError(f"{root} is not this user's own folder")
        if found.st_mode & 0o077:
            raise OSError(f"{root} is open to other users")
    return root


def _temporary_name() -> Path:
    user = os.getuid() if sys.platform != "win32" else 0
    return Path(tempfile.gettempdir()) / f"canvaslm-native-{user}"


def is_temporary(library: Path) -> bool:
    """Whether a library is kept in `temporary_root`."""
    return _temporary_name() in library.parents


def cached_library(*, anew: bool = False) -> Path:
    """The library for this source tree, compiled now if a whole one is not there yet, or `anew`.

    It is kept in `cache_root`, or in `temporary_root` where that cannot be written. Raises BuildFailed.
    """
    compiler = find_compiler()
    name = source_hash(compiler)
    problems = []
    for root in (cache_root, temporary_root):
        try:
            return _kept(root() / name, compiler, anew)
        except OSError as error:
            problems.append(str(error))
    raise BuildFailed(
        f"there is no place to keep them: {'; '.join(problems)}",
        "let XDG_CACHE_HOME name a folder with some free space that can be written, and run again",
    )


def is_cached() -> bool:
    """Whether a whole library for this source tree is kept already. Raises BuildFailed without a compiler."""
    name = source_hash(find_compiler())
    return any(is_whole(root() / name / LIBRARY) for root in (cache_root, temporary_root))


def _kept(folder: Path, compiler: list[str], anew: bool) -> Path:
    target = folder / LIBRARY
    if is_whole(target) and not anew:
        return target
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if anew or not is_whole(target):
            compile_library(target, compiler)
            _digest_file(target).write_text(_digest(target))
    return target


def is_whole(library: Path) -> bool:
    """Whether a library is, byte for byte, the one that was built: the disk may have been full, the machine
    may have gone down. To map what is cut short kills the process (SIGBUS)."""
    try:
        return _digest_file(library).read_bytes() == _digest(library).encode()
    except OSError:
        return False


def _digest_file(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


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
    "is_cached",
    "is_temporary",
    "is_whole",
    "source_hash",
    "temporary_root",
    "units",
]
