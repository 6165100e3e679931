"""Where files may be written, and that they are written whole or not at all. Never with a real device."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from canvaslm.errors import UsageError, WriteFailed
from canvaslm.files import atomic, check_output, check_output_folder, write_text, written_as


def special(kind: str, folder: Path) -> Path:
    """Something in `folder` that is there and is no regular file; `link-to-X` is a link to it."""
    made = folder / "special.gguf"
    if kind.startswith("link-to-"):
        made.symlink_to(special(kind.removeprefix("link-to-"), _made(folder / "target")))
    elif kind == "fifo":
        os.mkfifo(made)
    elif kind == "socket":
        bound = socket.socket(socket.AF_UNIX)
        here = Path.cwd()
        os.chdir(folder)  # a socket's name may have 108 bytes
        try:
            bound.bind(made.name)
        finally:
            os.chdir(here)
            bound.close()
    else:
        made.mkdir()
    return made


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


KINDS = ("fifo", "socket", "folder", "link-to-fifo", "link-to-socket", "link-to-folder")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_with_and_without_force(
    kind: str, force: bool, tmp_path: Path
) -> None:
    path = special(kind, tmp_path)
    before = path.lstat()
    with pytest.raises(UsageError, match=r"special\.gguf: is a (FIFO|socket|folder|link to a)") as raised:
        check_output(path, force=force, param="json")
    assert raised.value.param == "json"
    with pytest.raises(UsageError), atomic(path):
        pytest.fail("the block does not run")
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert sorted(entry.name for entry in tmp_path.iterdir()) in (
        ["special.gguf"],
        ["special.gguf", "target"],
    )


def test_a_file_needs_force_and_so_does_a_link_to_nothing(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    link.symlink_to(tmp_path / "nothing")
    for path in (file, link):
        with pytest.raises(UsageError, match="is there already; --force replaces it"):
            check_output(path, force=False)
        check_output(path, force=True)
    check_output(tmp_path / "new", force=False)


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("precious")
    link.symlink_to(file)
    write_text(link, "new")
    assert not link.is_symlink()
    assert (link.read_text(), file.read_text()) == ("new", "precious")


def test_bad_places_are_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path, says in (
        (tmp_path / "no" / "out", "no such folder to write into"),
        (file / "out", "no such folder to write into"),
        (tmp_path / ("n" * 300), "cannot be written"),
        (Path("a\0b"), "cannot be written"),
    ):
        with pytest.raises(UsageError, match=says):
            check_output(path, force=True)
    with pytest.raises(UsageError, match="is the input itself"):
        check_output(file, force=True, sources=[tmp_path / "gone", file])


def test_folders(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new", force=False)
    check_output_folder(tmp_path, force=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="name an empty folder"):
        check_output_folder(tmp_path, force=False)
    check_output_folder(tmp_path, force=True)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "link", "fifo"):
        with pytest.raises(UsageError, match=f"{name}: "):
            check_output_folder(tmp_path / name, force=True)


def _fill(path: Path, then: Callable[[], object]) -> None:
    with atomic(path) as file:
        file.write(b"half")
        then()


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _fill(path, _interrupt)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with (
        pytest.raises(
            WriteFailed, match=r"out: cannot be written \(No space left on device\); free some"
        ) as raised,
        atomic(path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_block_itself_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "out"):
        (tmp_path / "missing").read_bytes()


def test_a_rename_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self), None, str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(WriteFailed, match=r"out: cannot be written \(Permission denied\); write to a folder"):
        write_text(tmp_path / "out", "x")
    assert list(tmp_path.iterdir()) == []


def test_what_takes_the_name_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(UsageError, match="is a FIFO"):
        _fill(path, lambda: os.mkfifo(path))
    assert list(tmp_path.iterdir()) == [path]
    assert path.is_fifo()


def test_a_folder_in_the_making_is_told_by_its_own_name(tmp_path: Path) -> None:
    final = pytest.raises(WriteFailed, match=r"^final: cannot be written")
    with final, written_as(Path("final")), atomic(tmp_path / "part"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / ("n" * 255), "x")
    finally:
        os.umask(before)
    assert (tmp_path / ("n" * 255)).stat().st_mode & 0o777 == 0o640
