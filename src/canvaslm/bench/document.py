"""The one JSON document that a bench writes: how it is made, written and read back.

    {"canvaslm_bench": 1, "kind": "load" | "steps" | "server" | "answers", "created", "canvaslm",
     "machine": {...}, "model": {...}, "settings": {...}, "results": {...}}

Times are in seconds where a name ends in `_s` or says seconds, in milliseconds where it says ms; sizes in
bytes unless a name says gb (10^9). A value that is not known is null.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import NotFound, UsageError
from ..files import write_text
from .host import stamp

VERSION = 1
KINDS = ("load", "steps", "server", "answers")
Document = dict[str, Any]


def document(
    kind: str, *, machine: Document, model: Document, settings: Document, results: Document
) -> Document:
    """The whole, with its head."""
    from ..version import __version__

    return {
        "canvaslm_bench": VERSION,
        "kind": kind,
        "created": stamp(),
        "canvaslm": __version__,
        "machine": machine,
        "model": model,
        "settings": settings,
        "results": results,
    }


def as_json(content: Document) -> str:
    """Indented JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def write(path: Path, content: Document) -> None:
    """Raises as `files.write_text` does."""
    write_text(path, as_json(content) + "\n")


def read(path: Path) -> Document:
    """A document written by `write`. Raises NotFound, and UsageError for any other file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error})", "compare") from error
    if not isinstance(found, dict) or "canvaslm_bench" not in found:
        raise UsageError(f"{path}: was not written by `canvaslm bench --json`", "compare")
    if (
        found["canvaslm_bench"] != VERSION
        or found.get("kind") not in KINDS
        or not isinstance(found.get("results"), dict)
    ):
        raise UsageError(f"{path}: written by another version of canvaslm; measure again", "compare")
    return found


__all__ = ["KINDS", "VERSION", "Document", "as_json", "document", "read", "write"]
