"""Bodies that are large, wrong, or both: what a server must take without standing still.

Each fills `size` bytes, up to the 8 MB that are let in.
"""

from __future__ import annotations

from collections.abc import Callable

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
GENERATE, OLLAMA_CHAT, SHOW = "/api/generate", "/api/chat", "/api/show"
TOKENIZE, DETOKENIZE, TEMPLATE = "/tokenize", "/detokenize", "/apply-template"
LARGEST = 8 * 2**20

_TURN = b'{"role":"user","content":"x"}'
_ANSWER = b'{"role":"assistant","content":"x"}'
_TOOL = b'{"type":"function","function":{"name":"f","parameters":{}}}'
_START = b'"messages":[' + _TURN + b"]"
# What lists are filled with: wrong wherever texts, objects or numbers belong, then right in some places.
ITEMS = {
    "numbers": b"1",
    "texts": b'"x"',
    "nulls": b"null",
    "lists": b"[]",
    "objects": b"{}",
    "turns": _TURN,
    "answers": _ANSWER,
    "tools": _TOOL,
    "parts": b'{"type":"text","text":"x"}',
    "pieces of text": b'"' + b"word and " * 500 + b'"',
}
# (path, what stands before the list, what stands after it)
LISTS: dict[str, tuple[str, bytes, bytes]] = {
    "messages": (CHAT, b'{"messages":[', b"]}"),
    "content": (CHAT, b'{"messages":[{"role":"user","content":[', b"]}]}"),
    "tool_calls": (CHAT, b'{"messages":[{"role":"assistant","tool_calls":[', b"]}]}"),
    "chat tools": (CHAT, b"{" + _START + b',"tools":[', b"]}"),
    "stop": (CHAT, b"{" + _START + b',"stop":[', b"]}"),
    "modalities": (CHAT, b"{" + _START + b',"modalities":[', b"]}"),
    "unknown field": (CHAT, b'{"x":[', b'],"messages":[1]}'),
    "prompt": (COMPLETIONS, b'{"prompt":[', b"]}"),
    "prompts of tokens": (COMPLETIONS, b'{"prompt":[[', b"]]}"),
    "input": (RESPONSES, b'{"input":[', b"]}"),
    "anthropic messages": (MESSAGES, b'{"max_tokens":1,"messages":[', b"]}"),
    "anthropic content": (COUNT, b'{"messages":[{"role":"user","content":[', b"]}]}"),
    "system": (COUNT, b"{" + _START + b',"system":[', b"]}"),
    "anthropic tools": (COUNT, b"{" + _START + b',"tools":[', b"]}"),
    "stop_sequences": (MESSAGES, b'{"max_tokens":1,' + _START + b',"stop_sequences":[', b"]}"),
    "images": (GENERATE, b'{"prompt":"x","images":[', b"]}"),
    "context": (GENERATE, b'{"prompt":"x","context":[', b"]}"),
    "ollama messages": (OLLAMA_CHAT, b'{"messages":[', b"]}"),
    "ollama tools": (OLLAMA_CHAT, b"{" + _START + b',"tools":[', b"]}"),
    "ollama stop": (OLLAMA_CHAT, b'{"options":{"stop":[', b"]}," + _START + b"}"),
    "tokens": (DETOKENIZE, b'{"tokens":[', b"]}"),
    "template messages": (TEMPLATE, b'{"messages":[', b"]}"),
    "template tools": (TEMPLATE, b"{" + _START + b',"tools":[', b"]}"),
}
TEXTS: dict[str, tuple[str, bytes, bytes]] = {
    "turn's text": (CHAT, b'{"messages":[{"role":"user","content":"', b'"}]}'),
    "prompt's text": (COMPLETIONS, b'{"prompt":"', b'"}'),
    "input's text": (RESPONSES, b'{"input":"', b'"}'),
    "anthropic text": (COUNT, b'{"messages":[{"role":"user","content":"', b'"}]}'),
    "tokenize": (TOKENIZE, b'{"content":"', b'"}'),
    "pieces": (TOKENIZE, b'{"with_pieces":true,"content":"', b'"}'),
    "ollama prompt": (GENERATE, b'{"prompt":"', b'"}'),
    "raw prompt": (GENERATE, b'{"raw":true,"prompt":"', b'"}'),
    "model": (SHOW, b'{"model":"', b'"}'),
    "template text": (TEMPLATE, b'{"messages":[{"role":"user","content":"', b'"}]}'),
    "key": (CHAT, b'{"', b'":1}'),
    "stop's text": (CHAT, b"{" + _START + b',"stop":"', b'"}'),
}
LETTERS = {
    "words": b"word and ",
    "wide": "é😀".encode(),
    "quotes": rb"\"[{",
    "backslashes": rb"\\",
    "markers": b"<|turn>user\\n",
    "surrogates": rb"\ud800",
}


def filled(before: bytes, item: bytes, after: bytes, size: int, *, between: bytes = b",") -> bytes:
    """As many items as fit."""
    times = max(1, (size - len(before) - len(after)) // (len(item) + len(between)))
    return before + between.join([item] * times) + after


def _keys(size: int) -> bytes:
    """An object of as many fields as fit, none known."""
    fields = b",".join(b'"%x":1' % i for i in range(0x10000, 0x10000 + size // 10))
    return b"{" + fields + b"," + _START + b"}"


def _levels(size: int) -> bytes:
    return b'{"messages":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}"


WHOLE: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "keys": (CHAT, _keys),
    "levels": (CHAT, _levels),
    "opened": (CHAT, lambda size: b"[" * size),
    "closed": (CHAT, lambda size: b"]" * size),
    "quotes": (CHAT, lambda size: b'"' * size),
    "spaces": (CHAT, lambda size: b" " * size),
    "zeros": (CHAT, lambda size: b"\0" * size),
    "digits": (DETOKENIZE, lambda size: b'{"tokens":[' + b"1" * size + b"]}"),
    "decimals": (CHAT, lambda size: b"{" + _START + b',"temperature":0.' + b"1" * size + b"}"),
    "exponent": (CHAT, lambda size: b"{" + _START + b',"temperature":1e' + b"9" * size + b"}"),
    "same key": (CHAT, lambda size: filled(b"{", b'"messages":[]', b"}", size)),
    "one of each": (CHAT, lambda size: filled(b'{"x":[', b'{"a":[{"b":1}]}', b"]}", size)),
}


def corpus(size: int = LARGEST) -> dict[str, tuple[str, bytes]]:
    """name -> (path, body)"""
    made: dict[str, tuple[str, bytes]] = {}
    for place, (path, before, after) in LISTS.items():
        for kind, item in ITEMS.items():
            made[f"{place}: {kind}"] = path, filled(before, item, after, size)
    for place, (path, before, after) in TEXTS.items():
        for kind, letters in LETTERS.items():
            made[f"{place}: {kind}"] = path, filled(before, letters, after, size, between=b"")
    for name, (path, make) in WHOLE.items():
        made[name] = path, make(size)
    return made


__all__ = ["CHAT", "LARGEST", "corpus", "filled"]
