"""Building and finding the native library: with a stand-in compiler, so that nothing is really compiled."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from canvaslm.ops.cpu import build, loader
from canvaslm.ops.cpu.structures import STRUCTURES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in compiler is a shell script")


def stand_in(folder: Path, body: str) -> str:
    path = folder / "compiler"
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def writing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes a file for every -o and notes each call."""
    log = tmp_path / "calls"
    script = f'echo "$@" >> {log}\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n'
    monkeypatch.setenv("CXX", stand_in(tmp_path, script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


def test_a_source_tree_compiles_once(writing_compiler: Path) -> None:
    first = build.cached_library()
    calls = len(writing_compiler.read_text().splitlines())
    assert calls == len(build.units()) + 1
    assert build.cached_library() == first
    assert len(writing_compiler.read_text().splitlines()) == calls
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert sorted(p.name for p in first.parent.iterdir()) == [
        build.LIBRARY,
        f"{build.LIBRARY}.sha256",
        "lock",
    ]


def test_nothing_shipped_depends_on_the_building_machine(writing_compiler: Path) -> None:
    build.cached_library()
    assert "-march=native" not in writing_compiler.read_text()


def test_other_flags_or_compilers_are_other_builds() -> None:
    assert build.source_hash(["g++"]) != build.source_hash(["clang++"])


def test_every_instruction_set_has_a_unit_of_its_own() -> None:
    names = {name for name, _, _ in build.units("x86_64")}
    shared = {"plain", "api", "repack", "pool", "lattice"}
    assert names == {*shared, "avx2", "avx512"}
    assert {name for name, _, _ in build.units("aarch64")} == {*shared, "neon"}
    assert {name for name, _, _ in build.units("riscv64")} == shared


def test_a_refusing_compiler_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", stand_in(tmp_path, "echo no such flag >&2\nexit 1\n"))
    with pytest.raises(build.BuildFailed, match="no such flag"):
        build.compile_library(tmp_path / "x.so")


def test_no_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("canvaslm.ops.cpu.build.importlib.util.find_spec", lambda name: None)
    with pytest.raises(build.BuildFailed, match=r"no C\+\+ compiler") as raised:
        build.find_compiler()
    assert "pip install ziglang" in raised.value.remedy
    monkeypatch.setattr("canvaslm.ops.cpu.build.importlib.util.find_spec", lambda name: object())
    assert build.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("CANVASLM_NATIVE")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**variables, **env}, capture_output=True, text=True, check=True
    )


ASK = """
from canvaslm.ops import cpu
print(cpu.available(), cpu.available())
print(cpu.problem())
print("notes:", *cpu.notes())
"""


def test_switched_off_is_silent() -> None:
    done = run(ASK, CANVASLM_NATIVE="0")
    assert done.stdout.startswith("False False\nswitched off")
    assert done.stdout.endswith("\nnotes:\n")
    assert done.stderr == ""


def test_a_failing_compiler_is_noted_once(tmp_path: Path) -> None:
    refusing = stand_in(tmp_path, "exit 1\n")
    done = run(ASK, CXX=refusing, XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.startswith("False False")
    assert done.stdout.count("for the fast path") == 1
    assert "let CXX name another C++ compiler" in done.stdout
    assert done.stderr == ""


def other_library(folder: Path, code: str) -> Path:
    """A shared library that holds `code` alone."""
    try:
        compiler = build.find_compiler()
    except build.BuildFailed as error:
        pytest.skip(str(error))
    (folder / "other.cpp").write_text('extern "C" ' + code)
    made = folder / "other.so"
    subprocess.run([*compiler, "-shared", "-fPIC", str(folder / "other.cpp"), "-o", str(made)], check=True)
    return made


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("int something_else() { return 1; }", "is another library, not canvaslm's kernels"),
        ("int canvas_abi() { return 999; }", "its interface has number 999"),
        (f"int canvas_abi() {{ return {loader._ABI}; }}", "it has no canvas_"),
    ],
)
def test_a_wrong_library_is_noted_and_done_without(tmp_path: Path, code: str, words: str) -> None:
    done = run(ASK, CANVASLM_NATIVE=str(other_library(tmp_path, code)))
    assert done.stdout.startswith("False False")
    assert words in done.stdout
    assert done.stdout.count("unset CANVASLM_NATIVE") == 1
    assert done.stderr == ""


def test_a_library_that_is_not_there_is_noted(tmp_path: Path) -> None:
    done = run(ASK, CANVASLM_NATIVE=str(tmp_path / "missing.so"))
    assert done.stdout.startswith("False False")
    assert "missing.so" in done.stdout


def test_every_structure_has_the_size_the_library_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from canvaslm.ops import cpu

    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    lib = loader.library()
    for one in STRUCTURES:
        assert lib.canvas_struct_size(one.__name__.encode()) == ctypes.sizeof(one) > 0
    assert lib.canvas_struct_size(b"Unheard") == 0

    class HeadCall(ctypes.Structure):
        """As if a field had been added here alone."""

        _fields_ = (*STRUCTURES[2]._fields_, ("more", ctypes.c_void_p))

    assert STRUCTURES[2].__name__ == "HeadCall"
    monkeypatch.setattr(loader, "STRUCTURES", (HeadCall,))
    with pytest.raises(build.BuildFailed, match=r"HeadCall has \d+ bytes there, \d+ here"):
        loader._declare(lib, Path("it"))


@pytest.mark.slow
@pytest.mark.parametrize("unit", build.units(), ids=lambda unit: unit[0])
def test_sources_compile_without_a_warning(tmp_path: Path, unit: tuple[str, str, list[str]]) -> None:
    """With the compiler that is here. Users' builds are silent: a newer compiler's warning stops nobody."""
    try:
        compiler = build.find_compiler()
    except build.BuildFailed as error:
        pytest.skip(str(error))
    name, source, flags = unit
    # GCC 12's own header of AVX-512 intrinsics reads what it has not set.
    header = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"] if name == "avx512" else []
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-warning-option", *header]
    command = [*compiler, "-std=c++17", "-O1", "-fPIC", *flags, *strict, "-c", str(build.SOURCES / source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "made.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_no_line_of_the_sources_is_over_110_columns() -> None:
    for path in (*build.SOURCES.iterdir(), Path(__file__).with_name("twins.cpp")):
        long = [n for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 110]
        assert not long, f"{path.name}: lines {long}"


def test_threads_follow_the_variable() -> None:
    from canvaslm.ops import cpu

    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    done = run("from canvaslm.ops import cpu; print(cpu.threads())", CANVASLM_THREADS="3")
    assert done.stdout.strip() == "3"


def test_work_goes_on_after_a_fork() -> None:
    """Threads do not survive a fork; the child's first operation starts new ones."""
    from canvaslm.ops import cpu

    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    code = """
import os, torch
from canvaslm.ops.cpu.elementwise import rms_norm
x = torch.randn(300, 64)
want = rms_norm(x, None, 1e-6)
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.equal(rms_norm(x, None, 1e-6), want) else 1)
print(os.waitpid(pid, 0)[1])
"""
    assert run(code, CANVASLM_THREADS="2").stdout.strip() == "0"
