"""Building and finding the native library: with a stand-in compiler, so that nothing is really compiled."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from canvaslm.ops.cpu import build

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in compiler is a shell script")


def stand_in(folder, body: str) -> str:
    path = folder / "compiler"
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def writing_compiler(tmp_path, monkeypatch):
    """Writes a file for every -o and notes each call."""
    log = tmp_path / "calls"
    script = f'echo "$@" >> {log}\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n'
    monkeypatch.setenv("CXX", stand_in(tmp_path, script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


def test_a_source_tree_compiles_once(writing_compiler):
    first = build.cached_library()
    calls = len(writing_compiler.read_text().splitlines())
    assert calls == len(build.units()) + 1
    assert build.cached_library() == first
    assert len(writing_compiler.read_text().splitlines()) == calls
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert sorted(p.name for p in first.parent.iterdir()) == [build.LIBRARY, "lock"]


def test_nothing_shipped_depends_on_the_building_machine(writing_compiler):
    build.cached_library()
    assert "-march=native" not in writing_compiler.read_text()


def test_other_flags_or_compilers_are_other_builds():
    assert build.source_hash(["g++"]) != build.source_hash(["clang++"])


def test_every_instruction_set_has_a_unit_of_its_own():
    names = {name for name, _, _ in build.units("x86_64")}
    assert names == {"plain", "avx2", "avx512", "api", "repack", "pool"}
    assert {name for name, _, _ in build.units("aarch64")} == {"plain", "neon", "api", "repack", "pool"}
    assert {name for name, _, _ in build.units("riscv64")} == {"plain", "api", "repack", "pool"}


def test_a_refusing_compiler_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", stand_in(tmp_path, "echo no such flag >&2\nexit 1\n"))
    with pytest.raises(build.BuildFailed, match="no such flag"):
        build.compile_library(tmp_path / "x.so")


def test_no_compiler_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.BuildFailed, match="pip install ziglang"):
        build.find_compiler()
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    assert build.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("CANVASLM_NATIVE")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**variables, **env}, capture_output=True, text=True, check=True
    )


ASK = "from canvaslm.ops import cpu; print(cpu.available(), cpu.available()); print(cpu.problem())"


def test_switched_off_is_silent():
    done = run(ASK, CANVASLM_NATIVE="0")
    assert done.stdout.startswith("False False\nswitched off")
    assert "Warning" not in done.stderr


def test_a_failing_compiler_warns_once(tmp_path):
    refusing = stand_in(tmp_path, "exit 1\n")
    done = run(ASK, CXX=refusing, XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.startswith("False False")
    assert done.stderr.count("RuntimeWarning") == 1
    assert "install a C++ compiler" in done.stderr


def test_threads_follow_the_variable():
    from canvaslm.ops import cpu

    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    done = run("from canvaslm.ops import cpu; print(cpu.threads())", CANVASLM_THREADS="3")
    assert done.stdout.strip() == "3"


def test_work_goes_on_after_a_fork():
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
