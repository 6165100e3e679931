"""Files that canvaslm writes: where it may, and whole or not at all. Every writer goes through this module.

What is there already is looked at by its own name (`lstat`), with and without `--force`:

- a regular file may be replaced, by a rename;
- a link to a regular file, or to nothing, is replaced itself: what it points to keeps its bytes;
- anything else (a device, a FIFO, a socket, a folder, a link to one of these) is never touched. A rename
  would put a file in place of `/dev/full`, and opening a FIFO waits for a reader that may never come.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import UsageError, WriteFailed

# What only writing can raise, whatever else the block of `atomic` does.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_REMEDIES = {
    errno.ENOSPC: "free some space there, or write to another disk",
    errno.EDQUOT: "free some of your quota there, or write to another disk",
    errno.EFBIG: "raise the limit (`ulimit -f`), or write to another file system",
    errno.EROFS: "write to another disk",
    errno.EACCES: "write to a folder of yours",
}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def check_output(path: Path, *, force: bool, sources: Iterable[Path] = (), param: str = "out") -> None:
    """Raises UsageError, which names `param`, where no file may be written to `path`.

    That is: its folder is not there, it is one of the `sources`, it is no regular file, or there is one and
    `force` is false.
    """
    try:
        found = _kind(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be written ({_why(error)}); name another file", param) from error
    if found is None:
        if not path.parent.is_dir():
            raise UsageError(f"{path.parent}: there is no such folder to write into", param)
        return
    if found:
        raise UsageError(f"{path}: is {found}, which nothing is written over; name a file", param)
    if any(source.exists() and path.exists() and path.samefile(source) for source in sources):
        raise UsageError(f"{path}: is the input itself; name another file to write", param)
    if not force:
        raise UsageError(f"{path}: is there already; --force replaces it", param)


def check_output_folder(path: Path, *, force: bool, param: str = "out") -> None:
    """Raises UsageError where files may not be written into the folder `path`: it is no folder, or holds
    something and `force` is false. A link to a folder is that folder."""
    try:
        filled = any(path.iterdir())
    except FileNotFoundError:
        if not path.is_symlink():
            return
        raise UsageError(f"{path}: is a link to nothing; remove it, or name a folder", param) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be written into ({_why(error)}); name a folder", param) from error
    if filled and not force:
        raise UsageError(
            f"{path}: is there already; name an empty folder (--force replaces the model in it)", param
        )


def _kind(path: Path) -> str | None:
    """What is there instead of a file: "" for a file or a link to one, None for nothing at all."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return ""
    if not stat.S_ISLNK(mode):
        return _KINDS.get(stat.S_IFMT(mode), "no regular file")
    try:
        mode = path.stat().st_mode
    except OSError:  # to nothing, or in a circle
        return ""
    return "" if stat.S_ISREG(mode) else f"a link to {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}"


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """`with atomic(path) as file`: a private temporary file beside `path`, flushed to the disk and renamed to
    `path` when the block has succeeded, removed when it has not.

    Raises UsageError as `check_output` does of what may be replaced, WriteFailed where the disk is full or
    the folder cannot be written.
    """
    check_output(path, force=True)
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; what is asked for is as readable as any file the user writes.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        check_output(path, force=True)  # it may have taken an hour to get here
        temporary.replace(path)
        temporary = None
    except OSError as error:
        ours = error.filename is not None and Path(os.fsdecode(error.filename)) == temporary
        if error.errno in _FULL or ours or temporary is None:
            raise write_failed(path, error) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The file whole, in UTF-8. Raises as `atomic` does."""
    with atomic(path) as file:
        file.write(text.encode())


@contextmanager
def written_as(path: Path) -> Iterator[None]:
    """Files made under another name: what fails is told of `path`, the name that they were to have."""
    try:
        yield
    except WriteFailed as error:
        cause = error.__cause__
        raise (write_failed(path, cause) if isinstance(cause, OSError) else error) from error
    except OSError as error:
        if error.errno in _FULL:
            raise write_failed(path, error) from error
        raise


def write_failed(path: Path, error: OSError) -> WriteFailed:
    """The error for a file that the system would not take: which, why, and what to do."""
    return WriteFailed(
        f"{path}: cannot be written ({_why(error)}); {_REMEDIES.get(error.errno or 0, 'write elsewhere')}"
    )


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


__all__ = ["atomic", "check_output", "check_output_folder", "write_failed", "write_text", "written_as"]
