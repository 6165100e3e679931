"""A core dependency is one that the package imports; the rest are extras."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import canvaslm

SOURCE = Path(canvaslm.__file__).parent
PROJECT = SOURCE.parent.parent / "pyproject.toml"

_IMPORTED_AS = {"pillow": "PIL"}


def imported_modules() -> set[str]:
    """First names of all modules that any file imports, inside functions too."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    return found


@pytest.mark.skipif(not PROJECT.exists(), reason="not a source tree")
def test_every_core_dependency_is_imported() -> None:
    core = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=!~ ;[]", requirement)[0].replace("-", "_") for requirement in core}
    assert "torch" in names
    assert {_IMPORTED_AS.get(name, name) for name in names} <= imported_modules()


@pytest.mark.parametrize("name", ["gguf", "safetensors", "transformers", "pytest"])
def test_what_only_tests_need_is_not_imported(name: str) -> None:
    assert name not in imported_modules()
