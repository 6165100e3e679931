"""The architecture in plain torch."""

from __future__ import annotations

from .config import ModelConfig
from .context import Context, PlainContext, RowsContext
from .diffusion_gemma.model import DiffusionGemma

__all__ = ["Context", "DiffusionGemma", "ModelConfig", "PlainContext", "RowsContext"]
