"""The program's three streams, whatever the caller has made of them: closed, full, or without a reader.

standard input closed     reads as empty
standard output           what cannot be written is an error: one line, exit code 1
standard error            what cannot be written is dropped: notes are no reason to fail
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from ..errors import WriteFailed


def open_streams() -> None:
    """Puts streams with these rules in the place of Python's own; leaves others (of tests, of an editor)."""
    if sys.platform != "win32":
        _fill_closed()
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _text(_StandardOutput(1, "w", closefd=False), sys.stdout, "replace")
    elif reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="replace")  # a locale without a character is no reason to stop
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _text(_StandardError(2, "w", closefd=False), sys.stderr, "backslashreplace")


def settle_output() -> None:
    """Writes what standard output still holds, or drops it: Python would say so once more as it exits."""
    try:
        sys.stdout.flush()
    except Exception:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fill_closed() -> None:
    """A file that is opened later must not become standard output. What stands there instead cannot be
    written (1) or takes everything (0, 2)."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free: this one


class _StandardOutput(io.FileIO):
    """Standard output. A reader that has gone (BrokenPipeError) is not worth a word."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise WriteFailed(f"standard output: cannot be written ({error.strerror})") from error


class _StandardError(io.FileIO):
    """Standard error."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _text(raw: io.FileIO, before: Any, errors: str) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    by_line = raw.isatty() or isinstance(raw, _StandardError)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=by_line)


__all__ = ["open_streams", "settle_output"]
