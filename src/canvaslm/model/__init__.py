"""What every model shares: the protocol, its context of keys and values, and the registry of families."""

from __future__ import annotations

from .config import ModelConfig
from .context import Context, PlainContext, RowsContext
from .protocol import Model

__all__ = ["Context", "Model", "ModelConfig", "PlainContext", "RowsContext"]
