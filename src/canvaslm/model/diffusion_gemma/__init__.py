"""DiffusionGemma: a mixture of experts with sliding and full attention, uniform
noise and self-conditioning."""

from __future__ import annotations

from .config import DiffusionGemmaConfig
from .model import DiffusionGemma

__all__ = ["DiffusionGemma", "DiffusionGemmaConfig"]
