"""NEON kernels against the plain ones, cross-compiled by the `ziglang` wheel and run under
qemu where both are here."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from canvaslm.ops.cpu import build

QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
NATIVE = platform.machine().lower() in ("aarch64", "arm64")


def compile_twins(folder: Path, compiler: list[str]) -> Path:
    """The comparison program for aarch64, with both sets of kernels in it."""
    sources = [(s, f) for n, s, f in build.units("aarch64") if n != "api"]
    sources.append((str(Path(__file__).with_name("twins.cpp")), ["-DOTHER=neon", f"-I{build.SOURCES}"]))
    objects = []
    for i, (source, extra) in enumerate(sources):
        made = str(folder / f"{i}.o")
        flags = [*extra, "-O2", "-std=c++17", "-ffp-contract=off", "-w"]
        command = [*compiler, *flags, "-c", str(build.SOURCES / source), "-o", made]
        subprocess.run(command, check=True, capture_output=True, text=True)
        objects.append(made)
    program = folder / "twins"
    subprocess.run(
        [*compiler, *objects, "-o", str(program), "-lpthread"], check=True, capture_output=True, text=True
    )
    return program


@pytest.mark.slow
def test_neon_agrees_with_plain(tmp_path: Path) -> None:
    if NATIVE:
        compiler, run = build.find_compiler(), []
    elif not QEMU or not importlib.util.find_spec("ziglang"):
        pytest.skip("needs qemu-aarch64 and the ziglang wheel (or a 64-bit ARM machine)")
    else:
        compiler, run = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"], [QEMU]
    done = subprocess.run(
        [*run, str(compile_twins(tmp_path, compiler))], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all agree\n")
