"""Evals by name. An eval is a module with `Options`, and `evaluate(answerer,
options, tick) -> list[Score]`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..errors import NotFound

EVALS = {"demo": "canvaslm.evals.demo"}


def find_eval(name: str) -> ModuleType:
    """The eval's module, imported now. Raises NotFound for an unknown name."""
    if name not in EVALS:
        raise NotFound(f"no eval is called {name!r}; there is {', '.join(EVALS)}")
    return import_module(EVALS[name])


__all__ = ["EVALS", "find_eval"]
