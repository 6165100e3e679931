"""What a server allows. Sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """`max_queue`: requests that may wait beside those that run; one more is refused with 429.

    `max_bodies`: bytes of request bodies held at a time, over all connections.
    """

    max_body: int = 8 * 2**20
    max_bodies: int = 64 * 2**20
    max_queue: int = 64
    max_n: int = 16
    read_timeout: float = 30.0  # for a whole request body
    write_timeout: float = 60.0  # without the client taking anything
    keep_alive: float = 15.0  # between signs of life in a silent stream


__all__ = ["Limits"]
