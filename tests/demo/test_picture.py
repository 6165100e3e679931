"""README's picture is what the demo model does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from canvaslm.demo.config import MODEL_FOLDER

ROOT = Path(__file__).resolve().parents[2]


def script() -> ModuleType:
    """scripts/canvas_picture.py as a module."""
    spec = importlib.util.spec_from_file_location("canvas_picture", ROOT / "scripts" / "canvas_picture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not (MODEL_FOLDER / "model.safetensors").exists(), reason="the demo model is not here")
def test_the_picture_is_a_real_run() -> None:
    module = script()
    assert module.TARGET.read_text(encoding="utf-8") == module.picture(), (
        "docs/canvas.svg is stale: python scripts/canvas_picture.py"
    )


def test_readme_shows_it() -> None:
    assert "docs/canvas.svg" in (ROOT / "README.md").read_text(encoding="utf-8")
