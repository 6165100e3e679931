"""What a server allows. Sizes in bytes, times in seconds.

The constants bound what one body may hold, whatever its size: the time and the memory that a body can cost
before it is refused follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..text.stop import MAX_LENGTH, MAX_STOPS
from ..types import MAX_BIASES

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


def table() -> list[tuple[str, int | float, str]]:
    """What is limited, the most of it by default, and what answers to more."""
    given = Limits()
    conversation = "400, `context_length_exceeded`"
    field, whole = "400, `invalid_value` and the field's name", "400, `invalid_value`"
    return [
        ("bytes of a body (`max_body`)", given.max_body, "413, `request_too_large`"),
        ("bytes of bodies held at a time (`max_bodies`)", given.max_bodies, "429"),
        ("seconds for a body to arrive (`read_timeout`)", given.read_timeout, "408"),
        ("seconds without a client taking anything (`write_timeout`)", given.write_timeout, "the end"),
        ("requests that wait (`max_queue`)", given.max_queue, "429, `queue_full`"),
        ("answers of one request (`max_n`)", given.max_n, "400"),
        ("levels of lists and objects in a body", MAX_DEPTH, "400, `invalid_json`"),
        ("lists and objects of a body", MAX_CONTAINERS, whole),
        ("values of a body, about", MAX_VALUES, whole),
        ("`messages`; items of `input`", MAX_MESSAGES, conversation),
        ("content parts, or tool calls, of a message; `system`; `images`", MAX_BLOCKS, field),
        ("`tools`", MAX_TOOLS, field),
        ("prompts of one request to `/v1/completions`", MAX_PROMPTS, field),
        ("token ids in one list", MAX_TOKENS, field),
        ("tokens of `logit_bias`", MAX_BIASES, field),
        ("characters of `content` for `/tokenize`", MAX_TEXT, field),
        ("`modalities`", MAX_STRINGS, field),
        ("stop strings", MAX_STOPS, field),
        ("characters of a stop string", MAX_LENGTH, field),
    ]


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
    "table",
]
