"""The library that was compiled before: whole, or built anew; and where it is kept."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from canvaslm.ops import cpu
from canvaslm.ops.cpu import build, loader
from tests.waiting import HUNG

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in compiler is a shell script")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A compiler that writes a line for every -o, and how often it was called."""
    log, compiler = tmp_path / "calls", tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("canvaslm.ops.cpu.build.tempfile.tempdir", str(_made(tmp_path / "temporary")))
    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_asking_whether_one_is_kept_builds_none(
    calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_loaded", None)
    monkeypatch.setattr(loader, "_problem", None)
    monkeypatch.setattr(loader, "_installed", lambda: Path("nowhere"))
    monkeypatch.delenv("CANVASLM_NATIVE", raising=False)
    before = calls()
    assert not build.is_cached()
    assert not loader.ready()
    assert calls() == before
    build.cached_library()
    assert build.is_cached()
    monkeypatch.setenv("CANVASLM_NATIVE", "0")
    assert not loader.ready()


@pytest.mark.parametrize("spoil", ["cut", "zeros", "gone", "no digest", "half a digest"])
def test_what_is_not_whole_is_built_anew(spoil: str, calls: Callable[[], int]) -> None:
    library = build.cached_library()
    digest = library.with_name(f"{library.name}.sha256")
    good, first = library.read_bytes(), calls()
    assert build.is_whole(library)
    if spoil == "cut":
        library.write_bytes(good[:2])
    elif spoil == "zeros":
        library.write_bytes(bytes(len(good)))
    elif spoil == "gone":
        library.unlink()
    elif spoil == "no digest":
        digest.unlink()
    else:
        digest.write_bytes(digest.read_bytes()[:10])
    assert not build.is_whole(library)
    assert build.cached_library() == library
    assert library.read_bytes() == good
    assert calls() == 2 * first
    assert build.cached_library() == library
    assert calls() == 2 * first


def test_a_cache_that_cannot_be_made_is_replaced_by_a_folder_of_ones_own(
    calls: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file, in which not even root makes a folder")
    library = build.cached_library()
    assert library.is_relative_to(tmp_path / "temporary")
    assert build.is_temporary(library)
    assert build.temporary_root().stat().st_mode & 0o777 == 0o700
    first = calls()
    assert build.cached_library() == library
    assert calls() == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert not build.is_temporary(build.cached_library())


def test_a_user_without_a_home_gets_no_folder_named_tilde(
    calls: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(
        "canvaslm.ops.cpu.build.os.path.expanduser", lambda path: path
    )  # what Python does without one
    monkeypatch.chdir(tmp_path)
    assert build.is_temporary(build.cached_library())
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("who", ["a link", "a file", "open to others"])
def test_a_temporary_folder_that_others_can_write_is_not_used(
    who: str, calls: Callable[[], int], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no folder")
    theirs = tmp_path / "temporary" / f"canvaslm-native-{os.getuid()}"
    if who == "a link":
        theirs.symlink_to(_made(tmp_path / "theirs"))
    elif who == "a file":
        theirs.write_text("")
    else:
        theirs.mkdir()
        theirs.chmod(0o777)
    with pytest.raises(build.BuildFailed, match="no place to keep them") as raised:
        build.cached_library()
    assert "XDG_CACHE_HOME" in raised.value.remedy
    assert calls() == 0
    assert theirs.is_symlink() or theirs.is_file() or list(theirs.iterdir()) == []


def test_a_full_disk_leaves_no_part_of_a_library(
    calls: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    with monkeypatch.context() as patched:
        patched.setattr("canvaslm.ops.cpu.build.shutil.copyfile", full)
        with pytest.raises(build.BuildFailed, match="No space left on device") as raised:
            build.cached_library()
    assert "some free space" in raised.value.remedy
    for root in (tmp_path / "cache", tmp_path / "temporary"):
        assert {path.name for path in root.rglob("*") if path.is_file()} == {"lock"}
    assert build.is_whole(build.cached_library())


def ask(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python, without the variables that choose a library."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("CANVASLM_NATIVE")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**own, **environment}, capture_output=True, text=True, timeout=HUNG
    )


SAY = "from canvaslm.ops import cpu; print(cpu.available(), *cpu.notes())"


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
@pytest.mark.parametrize("share", [0.0, 0.00001, 0.3, 0.99])
def test_a_library_that_ends_early_is_not_mapped(share: float, tmp_path: Path) -> None:
    """Mapping it may work, and touching what is missing then kills the process."""
    whole = Path(loader.library()._name).read_bytes()
    cut = tmp_path / "cut.so"
    cut.write_bytes(whole[: int(len(whole) * share)])
    done = ask(SAY, CANVASLM_NATIVE=str(cut))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False the native kernels are not available")
    assert "unset CANVASLM_NATIVE" in done.stdout
    cut.write_bytes(whole)
    assert ask(SAY, CANVASLM_NATIVE=str(cut)).stdout == "True\n"


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_a_kept_library_that_does_not_load_is_built_anew_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from another machine with the same home folder: whole, and of no use here."""
    works, foreign = Path(loader.library()._name), tmp_path / "foreign.so"
    foreign.write_bytes(b"\x7fELF of another machine")
    asked: list[bool] = []

    def kept(*, anew: bool = False) -> Path:
        asked.append(anew)
        return Path(shutil.copy(works, tmp_path / "anew.so")) if anew else foreign

    monkeypatch.delenv("CANVASLM_NATIVE", raising=False)
    monkeypatch.setattr(build, "LIBRARY", "nothing-installed.so")
    monkeypatch.setattr(build, "cached_library", kept)
    assert loader._open()._name == str(tmp_path / "anew.so")
    assert asked == [False, True]


def test_a_temporary_place_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cpu.available():
        pytest.skip("no native kernels here")
    monkeypatch.setattr("canvaslm.ops.cpu.build.tempfile.tempdir", str(tmp_path))
    kept = build.temporary_root() / build.LIBRARY
    shutil.copy(loader.library()._name, kept)
    monkeypatch.setattr(loader, "_path", lambda: (kept, True))
    monkeypatch.setattr(loader, "_notes", [])
    loader._open()
    (note,) = loader.notes()
    assert str(tmp_path) in note
    assert "XDG_CACHE_HOME" in note
