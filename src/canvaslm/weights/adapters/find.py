"""From what the user gave as an adapter to where it lies: a folder or a file here, else a hub id."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...errors import NotFound
from ..hub import download_adapter, looks_like_hub_id, parse_hub_id


@dataclass(frozen=True)
class AdapterPlace:
    """Where an adapter lies: PEFT's folder or a GGUF file. `hub_id`: what it was asked for by, if it came
    from a hub."""

    path: Path
    hub_id: str | None = None

    def __str__(self) -> str:
        return self.hub_id or str(self.path)


def find_adapter(source: str | os.PathLike[str]) -> AdapterPlace:
    """Finds an adapter, downloading it where there is no such file or folder and `source` is a text that
    looks like a hub id, such as org/name or org/name@revision.

    Raises NotFound for what is nowhere, Offline, UsageError for an id that is none.
    """
    path = existing(source)
    if path is not None:
        return AdapterPlace(path.resolve())
    text = os.fspath(source)
    if isinstance(source, str) and is_hub_id(text):
        return AdapterPlace(download_adapter(parse_hub_id(text, "adapter")).resolve(), text)
    raise NotFound(
        f"{text}: there is no such file or folder; an adapter is PEFT's folder, a GGUF file or a hub id "
        "org/name"
    )


def adapter_name(source: str) -> str:
    """What an adapter is called that has got no name: the last part of its folder's path, or of its id."""
    if existing(source) is None and is_hub_id(source):
        return source.partition("@")[0].rpartition("/")[2]
    return Path(os.path.abspath(source)).name


def existing(source: str | os.PathLike[str]) -> Path | None:
    """The path of what is there, else None."""
    try:
        path = Path(source).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None  # a name no file system takes


def is_hub_id(text: str) -> bool:
    return looks_like_hub_id(text) and not text.endswith((".gguf", ".safetensors", ".json"))


__all__ = ["AdapterPlace", "adapter_name", "find_adapter"]
