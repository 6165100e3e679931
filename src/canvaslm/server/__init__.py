"""A model over HTTP: an asyncio application in front of one engine thread.

    app.py     puts it together                      guard.py    host, origin, key, size: before any route
    bridge.py  the engine thread and its requests    service.py  from what a client asks to events with text
    dialects/  one folder for each interface that clients know, and one line for it in dialects/registry.py

A dialect reads its request into a `GenerationRequest`, hands it to `Service.start`, and words the
`ChoiceEvent`s that come back.
"""

from __future__ import annotations

from .app import create_app

__all__ = ["create_app"]
