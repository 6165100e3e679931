"""A model over HTTP: an asyncio application in front of one engine thread.

    app.py        puts it together                     guard.py     host, origin, key, size: before any route
    bridge.py     the engine thread and its requests   service.py   from a dialect's wishes to events with text
    dialects.py   the list of dialects: a dialect is a router, the paths that are its own, and how it words errors

A dialect reads its request into an `Ask`, hands it to `Service.start`, and words the `Piece`s that come back.
"""

from __future__ import annotations

from .app import create_app

__all__ = ["create_app"]
