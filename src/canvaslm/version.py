"""The version, in a module of its own so that nothing has to import the whole package for it."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
