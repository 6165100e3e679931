"""What a server allows. Sizes in bytes, times in seconds.

The constants bound what one body may hold, whatever its size: the time and the memory that a body can cost
before it is refused follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_MESSAGES = 16_384  # turns of a conversation, and items of a Responses `input`
MAX_BLOCKS = 4096  # content parts, or calls, of one message
MAX_TOOLS = 1024
MAX_PROMPTS = 128  # of one request to /v1/completions
MAX_TOKENS = 2**20  # token ids in one list
MAX_STRINGS = 128  # items of lists that clients send out of habit


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


__all__ = [
    "MAX_BLOCKS",
    "MAX_MESSAGES",
    "MAX_PROMPTS",
    "MAX_STRINGS",
    "MAX_TOKENS",
    "MAX_TOOLS",
    "Limits",
]
