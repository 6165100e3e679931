"""Text that a user gives, in UTF-8 whatever the locale says. What is not UTF-8 is refused, not guessed at."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import NotFound, UsageError


def argument_text(text: str, flag: str) -> str:
    """An argument: Python keeps the bytes that it could not decode as lone surrogates."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        raise _refused(f"the text of {flag}", error, flag) from error


def file_text(path: str, flag: str) -> str:
    """A file, whole. Raises OSError as opening it does."""
    return _decoded(Path(path).read_bytes(), path, flag)


def input_text(flag: str) -> str:
    """Standard input, whole."""
    raw = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if raw is None else _decoded(raw.read(), "standard input", flag)


def exact_text(path: str, flag: str) -> str:
    """A file, or standard input for `-`, whole and with its line ends as they are.
    Raises NotFound, and UsageError."""
    raw = getattr(sys.stdin, "buffer", None)
    if path == "-" and raw is None:
        return sys.stdin.read()
    try:
        data = raw.read() if path == "-" and raw is not None else Path(path).read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: there is no such file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", flag) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused("standard input" if path == "-" else path, error, flag) from error


def input_line() -> str:
    """The next line of standard input with its end; "" where there is none."""
    raw = getattr(sys.stdin, "buffer", None)
    return sys.stdin.readline() if raw is None else _decoded(raw.readline(), "the line", "prompt")


def _decoded(data: bytes, what: str, flag: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(what, error, flag) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refused(what: str, error: UnicodeError, flag: str) -> UsageError:
    where = ""
    if isinstance(error, UnicodeDecodeError):
        where = f" (byte 0x{error.object[error.start]:02x} at place {error.start})"
    return UsageError(
        f"{what}: is not UTF-8{where}; convert it first, as with `iconv -f latin1 -t utf-8`", flag.strip("-")
    )


__all__ = ["argument_text", "exact_text", "file_text", "input_line", "input_text"]
