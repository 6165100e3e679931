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
MAX_TOKENS = 2**18  # token ids in one list
MAX_TEXT = 2**20  # characters for /tokenize
MAX_STRINGS = 128  # items of lists that clients send out of habit
MAX_VALUES = 2**19  # of a body, those in lists and objects included
MAX_CONTAINERS = 2**17  # lists and objects of a body
MAX_DEPTH = 100  # of lists and objects in each other
INLINE_BODY = 64 * 2**10  # bytes that are parsed and validated where they arrive


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
    "INLINE_BODY",
    "MAX_BLOCKS",
    "MAX_CONTAINERS",
    "MAX_DEPTH",
    "MAX_MESSAGES",
    "MAX_PROMPTS",
    "MAX_STRINGS",
    "MAX_TEXT",
    "MAX_TOKENS",
    "MAX_TOOLS",
    "MAX_VALUES",
    "Limits",
]
