"""Requests in, events out: scheduling, running and settling. Never sees a string."""

from __future__ import annotations

from .driver import Driver
from .engine import Engine

__all__ = ["Driver", "Engine"]
