"""Flags of commands that measure a server: where it is, and how to get in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NotFound, UsageError

if TYPE_CHECKING:
    from ..client import Endpoint

SERVER = "Server"  # the heading in the help


@dataclass(frozen=True)
class Address:
    """Where a server is; without `url` there is none."""

    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            rich_help_panel=SERVER,
            help="Measure an OpenAI-compatible server; -m is then the model's name there.",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            rich_help_panel=SERVER,
            help="The key to send is its first line. Or the variable CANVASLM_API_KEY.",
        ),
    ] = None

    def endpoint(self) -> Endpoint | None:
        """None without a `url`. Raises UsageError, NotFound for an address or a key that is none."""
        from ..client import Endpoint

        return None if self.url is None else Endpoint.parse(self.url, _key(self.api_key_file))


def _key(path: Path | None) -> str | None:
    """The first line of the file, or the one in the environment."""
    if path is None:
        return os.environ.get("CANVASLM_API_KEY") or None
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})", "api_key_file") from error
    if not lines:
        raise UsageError(f"{path}: holds no key", "api_key_file")
    return lines[0]


__all__ = ["SERVER", "Address"]
