"""Where a training run's examples come from: an importable source, or JSONL files of chats."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import NotFound, UsageError
from .data import Shuffled, Source, TrainingExample


def load_source(name: str, options: dict[str, Any]) -> Source:
    """Imports `package.module` or `package.module:object`; with options (or when it is
    callable) calls it with them.

    Raises NotFound when it cannot be imported, UsageError when it has no `example(seed, index)`.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise NotFound(f"data.source: cannot import {name!r}: {error}") from error
    if attribute and callable(found):
        found = _call(found, name, options)
    elif options:
        raise UsageError(
            f"data.options: {name!r} takes none; name a callable, as in 'module:function'",
            param="data.options",
        )
    if not callable(getattr(found, "example", None)):
        raise UsageError(f"data.source: {name!r} has no example(seed, index)", param="data.source")
    return found


def _call(factory: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    try:
        return factory(**options)
    except TypeError as error:
        raise UsageError(f"data.options: {name}: {error}", param="data.options") from error


def read_chats(
    files: Iterable[str | Path], encode: Callable[[list[Any]], TrainingExample | None]
) -> Shuffled:
    """Reads JSONL files of `{"messages": [...]}`; `encode` turns one conversation into an Example.

    Raises NotFound for a missing file, UsageError with file and line for a broken line
    or when nothing is left.
    """
    paths = [Path(file) for file in files]
    examples = [example for file in paths for example in _read_file(file, encode)]
    if not examples:
        raise UsageError(
            f"data.files: no usable conversation in {', '.join(map(str, paths))}", param="data.files"
        )
    return Shuffled(examples)


def _read_file(
    file: Path, encode: Callable[[list[Any]], TrainingExample | None]
) -> Iterator[TrainingExample]:
    if not file.is_file():
        raise NotFound(f"data.files: {file}: no such file")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            example = encode(_messages(line, f"{file}:{number}"))
            if example is not None:
                yield example


def _messages(line: str, where: str) -> list[Any]:
    try:
        messages = json.loads(line)["messages"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f'{where}: not a JSON object with "messages"', param="data.files") from error
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise UsageError(f"{where}: messages should be a list of objects with a role", param="data.files")
    return messages


def chat_encoder(
    tokenizer: Any, template: Any, turn_end: int
) -> Callable[[list[Any]], TrainingExample | None]:
    """Encodes a conversation up to its last assistant turn: that turn's content and
    `<turn|>` are the response.

    The turns before it and the header are the prompt; later turns are dropped. None
    without an assistant turn.
    """

    def encode(messages: list[Any]) -> TrainingExample | None:
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
        if last < 0 or not messages[last].get("content"):
            return None
        pieces = template.render(messages[:last], add_generation_prompt=True)
        prompt = tokenizer.encode_pieces(pieces)
        return TrainingExample(tuple(prompt), (*tokenizer.encode(messages[last]["content"]), turn_end))

    return encode


__all__ = ["chat_encoder", "load_source", "read_chats"]
