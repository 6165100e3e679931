"""Chat messages to a prompt, through the checkpoint's own template.

The template runs in a metered sandbox (`canvaslm.text.sandbox`); markers in messages, tools and their results
can never become control tokens (`canvaslm.text.escaping`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from ..errors import BadTemplate, UsageError
from ..types import Messages
from .default_template import DEFAULT_TEMPLATE
from .escaping import Escaper, cut, usable_specials
from .limits import Meter
from .markers import merge_text
from .messages import plain_messages, plain_tools
from .sandbox import MAX_SOURCE, Sandbox, compile_template, run_template
from .tokenizer import Tokenizer
from .tokenizer_files import MAX_CONFIG_BYTES, read_json_object, read_text

GEMMA_MARKERS = (
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>", '<|"|>'),
    *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    *("<|image>", "<|image|>", "<image|>", "<|audio>", "<|audio|>", "<audio|>", "<|video|>"),
)
SECONDS = 5.0
_READS_PARTS = re.compile(r"type['\"]?\]?\s*==\s*['\"]text['\"]")
_PLAIN_TIME = re.compile(r"(?:[^%]|%-?[A-Za-z%])*")
# Allowances in characters: what any prompt gets, and what each character of the messages adds.
_VALUE = (8 << 20, 32)
_OUTPUT = (4 << 20, 8)
_WORK_PER_VALUE = 16
_SEE_THROUGH = ("dictsort", "e", "escape", "forceescape", "urlencode")


class ChatTemplate:
    """A compiled chat template. Safe to share between threads.

    `sources` are the template's named variants; the one called `tool_use`, if any,
    serves requests with tools.
    """

    def __init__(
        self,
        source: str | Mapping[str, str] | None = None,
        *,
        bos: str = "<bos>",
        eos: str = "<eos>",
        specials: Iterable[str] | None = None,
        seconds: float = SECONDS,
    ) -> None:
        """`source=None` takes a built-in template in Gemma 4's format.

        `bos` and `eos` are the texts that `bos_token` and `eos_token` stand for; `specials` the texts of the
        control tokens (`Tokenizer.control_texts`), Gemma 4's if not given; `seconds` caps one rendering.
        Raises BadTemplate.
        """
        if source is None:
            source = DEFAULT_TEMPLATE
        self.sources: dict[str, str] = {"default": source} if isinstance(source, str) else dict(source)
        if "default" not in self.sources:
            raise BadTemplate("the checkpoint has several chat templates, none of them called 'default'.")
        self._codes = {name: compile_template(text) for name, text in self.sources.items()}
        self._tokens = {"bos_token": bos, "eos_token": eos}
        given = GEMMA_MARKERS if specials is None else tuple(specials)
        self._specials = usable_specials({*given, bos, eos} - {""})
        self._seconds = seconds

    @classmethod
    def from_folder(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> ChatTemplate:
        """The template of a checkpoint folder, the built-in one where it has none. Raises BadTemplate."""
        return cls(find_template(Path(folder)), **_named_tokens(tokenizer))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> ChatTemplate:
        """The template in a GGUF file's `tokenizer.chat_template`, else the built-in
        one. Raises BadTemplate."""
        source = metadata.get("tokenizer.chat_template")
        if source is not None and not isinstance(source, str):
            raise BadTemplate("tokenizer.chat_template is no string. Get the file again from its source.")
        return cls(source or None, **_named_tokens(tokenizer))

    def render(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """The prompt in pieces for `Tokenizer.encode_pieces`: `Special` for control tokens, `str` for text.

        Joined, the pieces are what plain Jinja renders. Raises UsageError on messages that are malformed or
        that the template itself refuses, BadTemplate where the template fails or exceeds its allowance.
        """
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        data = {
            "messages": plain_messages(messages, keep_parts=bool(_READS_PARTS.search(self.sources[name]))),
            "tools": plain_tools(tools),
            **(variables or {}),
        }
        escaper = Escaper(self._specials, [data, self.sources[name]])
        settings = {"enable_thinking": thinking, "add_generation_prompt": add_generation_prompt}
        rendered = self._run(name, escaper, escaper.hide(data) | settings | self._tokens)
        return merge_text(
            p if p in self._specials else escaper.show(p) for p in cut(rendered, self._specials)
        )

    def _run(self, name: str, escaper: Escaper, variables: dict[str, Any]) -> str:
        size = _size(variables)
        value = _VALUE[0] + _VALUE[1] * size
        environment = Sandbox(Meter(value, _WORK_PER_VALUE * value, self._seconds), _filters(escaper))
        environment.globals.update(raise_exception=_raiser(escaper), strftime_now=_strftime_now)
        return run_template(self._codes[name], environment, variables, _OUTPUT[0] + _OUTPUT[1] * size)


def find_template(folder: Path) -> str | dict[str, str] | None:
    """The chat template of a folder: chat_template.jinja, else `chat_template` in
    tokenizer_config.json (a string, or a list of named ones), else in chat_template.json; None where
    there is none. Raises BadTemplate."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path, 4 * MAX_SOURCE)
    for file in ("tokenizer_config.json", "chat_template.json"):
        path = folder / file
        found = read_json_object(path, MAX_CONFIG_BYTES).get("chat_template") if path.exists() else None
        if found is not None:
            return _variants(found, path)
    return None


def _variants(found: Any, path: Path) -> str | dict[str, str]:
    if isinstance(found, str):
        return found
    try:
        named = {str(entry["name"]): entry["template"] for entry in found}
    except (TypeError, KeyError):
        named = {}
    if not named or not all(isinstance(text, str) for text in named.values()):
        raise BadTemplate(f"{path}: 'chat_template' is neither a string nor a list of named templates.")
    return named


def _named_tokens(tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    texts = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    named: dict[str, Any] = {k: "" if i is None else tokenizer.token_text(i) for k, i in texts.items()}
    return named | {"specials": tokenizer.control_texts}


def _size(value: Any) -> int:
    """Characters of text in plain data; other values count as 16."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(k) + _size(v) for k, v in value.items())
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 16


# -- what transformers offers to templates -------------------------------------------------------------------


def _filters(escaper: Escaper) -> dict[str, Any]:
    """Filters that look at single characters or sort must see the text as it really is."""
    own = {name: _seeing_through(escaper, jinja2.filters.FILTERS[name]) for name in _SEE_THROUGH}
    return own | {"tojson": _to_json(escaper)}


def _seeing_through(escaper: Escaper, function: Any) -> Any:
    lead = 1 if hasattr(function, "jinja_pass_arg") else 0  # templates are compiled to pass the context first

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        value = escaper.show(args[lead])
        return escaper.hide(function(*args[:lead], value, *args[lead + 1 :], **kwargs))

    return run


def _to_json(escaper: Escaper) -> Any:
    @jinja2.pass_eval_context
    def tojson(
        context: Any,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> Any:
        if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
            raise BadTemplate("the chat template calls tojson with an indent that is no number from 0 to 16.")
        if any(len(s) > 8 for s in separators or ()):
            raise BadTemplate("the chat template calls tojson with long separators.")
        options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return escaper.hide(json.dumps(escaper.show(value), ensure_ascii=ensure_ascii, **options))

    return tojson


def _raiser(escaper: Escaper) -> Any:
    def raise_exception(message: Any = "") -> None:
        text = escaper.show(str(message)[:500])
        raise UsageError(f"the chat template refuses these messages: {text}", param="messages")

    return raise_exception


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 200 or not _PLAIN_TIME.fullmatch(pattern):
        raise BadTemplate("the chat template calls strftime_now with an unusual pattern.")
    return datetime.now().strftime(pattern)


__all__ = ["GEMMA_MARKERS", "SECONDS", "ChatTemplate", "find_template"]
