"""Requests in, events out: scheduling, running and settling. Never sees a string."""

from __future__ import annotations

from .engine import Engine

__all__ = ["Engine"]
