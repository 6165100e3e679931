"""Encoder keys and values: of one sequence, and shared between requests."""

from __future__ import annotations

from .kv import DenoiseContext, EncodeContext, KVCache
from .prefix import PrefixCache

__all__ = ["DenoiseContext", "EncodeContext", "KVCache", "PrefixCache"]
