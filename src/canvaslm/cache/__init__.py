"""Encoder keys and values: of one sequence, and shared between requests."""

from __future__ import annotations

from .canvas_keys import CanvasKeys
from .contexts import DenoiseContext, EncodeContext
from .kv import KVCache
from .prefix import PrefixCache
from .stores import storage_type

__all__ = ["CanvasKeys", "DenoiseContext", "EncodeContext", "KVCache", "PrefixCache", "storage_type"]
