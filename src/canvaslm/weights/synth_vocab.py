"""A made-up vocabulary with Gemma's structure: its markers and byte tokens at their ids,
then syllables and words.

Every word is the merge of two shorter tokens, so text of any kind can be encoded and read back, and token
counts per word are of a real vocabulary's order for text made of the same syllables.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from .gguf.write import (
    f32s,
    flag,
    i32s,
    string,
    strings,
    u32,
)

__all__ = ["TEMPLATE", "synthetic_vocabulary"]

_SPACE = "\u2581"
_CONTROL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>"}
# Where Gemma 4's vocabulary has them.
_MARKERS = {
    46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>", 50: "<|tool_response>",
    51: "<tool_response|>", 52: '<|"|>', 98: "<|think|>", 100: "<|channel>", 101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
}  # fmt: skip
_FIRST_BYTE = 238
_NORMAL, _CONTROL_TYPE, _BYTE = 1, 3, 6

TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
<|turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content }}<turn|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|turn>model
{% endif -%}
"""


def synthetic_vocabulary(size: int) -> dict[str, bytes]:
    """The `tokenizer.*` keys of a vocabulary of `size` tokens, at least 600 (markers,
    bytes and letters need that)."""
    if size < 600:
        raise ValueError(f"a synthetic vocabulary needs 600 tokens or more, not {size}")
    fixed = {**_CONTROL, **_MARKERS}
    types = dict.fromkeys(fixed, _CONTROL_TYPE)
    fixed |= {_FIRST_BYTE + value: f"<0x{value:02X}>" for value in range(256)}
    types |= dict.fromkeys(range(_FIRST_BYTE, _FIRST_BYTE + 256), _BYTE)
    words, merges = _words(), []
    tokens = []
    for i in range(size):
        if i in fixed:
            tokens.append(fixed[i])
            continue
        left, right = next(words)
        tokens.append(left + right)
        if right:
            merges.append(f"{left} {right}")
    return {
        "tokenizer.ggml.model": string("gemma4"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.scores": f32s([-1000.0] * size),
        "tokenizer.ggml.token_type": i32s([types.get(i, _NORMAL) for i in range(size)]),
        "tokenizer.ggml.merges": strings(merges),
        "tokenizer.ggml.bos_token_id": u32(2),
        "tokenizer.ggml.eos_token_id": u32(1),
        "tokenizer.ggml.unknown_token_id": u32(3),
        "tokenizer.ggml.padding_token_id": u32(0),
        "tokenizer.ggml.mask_token_id": u32(4),
        "tokenizer.ggml.add_bos_token": flag(True),
        "tokenizer.ggml.add_space_prefix": flag(False),
        "tokenizer.chat_template": string(TEMPLATE),
    }


def _words() -> Iterator[tuple[str, str]]:
    """Tokens as (left, right), which are tokens before it; (character, "") first. Without
    end, for practical sizes."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    others = [chr(code) for code in range(33, 127) if chr(code) not in letters]
    yield from ((char, "") for char in ["\n", "\t", _SPACE, *letters, *others])
    syllables = list(product("bcdfghjklmnprstvwxyz", "aeiou"))
    yield from syllables
    short = [left + right for left, right in syllables]
    yield from ((_SPACE, syllable) for syllable in short)
    longer = short
    while True:
        made = []
        for left, right in product(longer, short):
            yield left, right
            yield _SPACE + left, right
            made.append(left + right)
        longer = made
