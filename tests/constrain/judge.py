"""llguidance as a judge: matchers of bytes alone, made as its own documentation does, with its own limits."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

END = 256


class _Bytes:
    """The 256 bytes and an end, as a tokenizer."""

    tokens = (*(bytes((byte,)) for byte in range(256)), b"<end>")
    special_token_ids = (END,)
    eos_token_id = END
    bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@cache
def _tokenizer() -> Any:
    return LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=END)


def accepts(grammar: str, text: bytes) -> bool:
    """Whether a text is a whole document of a grammar in llguidance's form."""
    matcher = LLMatcher(_tokenizer(), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text)) == len(text) and bool(matcher.is_accepting())


def accepts_json(schema: Any, text: bytes, white_space: str = r"[ \n]{0,2}") -> bool:
    """Whether a text is a document of a JSON schema, by llguidance's reading of it."""
    return accepts(
        LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": white_space}),
        text,
    )


__all__ = ["accepts", "accepts_json"]
