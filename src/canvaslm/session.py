"""Text in, text out: joins a tokenizer, a chat template and an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from .diffusion import PRESETS, check_params
from .engine import Engine
from .errors import UsageError
from .model.registry import family_of
from .ops import cpu
from .text.chat import ChatTemplate
from .text.parse import Delta, ReplyParser
from .text.tokenizer import Tokenizer
from .types import (
    Committed,
    Draft,
    Event,
    Failed,
    Finished,
    FinishReason,
    Message,
    Messages,
    Params,
    Reply,
    Request,
    Settled,
    ToolCall,
)
from .weights.describe import format_of
from .weights.generation import sampling_defaults, source_of, stop_tokens
from .weights.gguf.fields import family_of_file
from .weights.gguf.file import GGUFFile
from .weights.loading.load import load_model
from .weights.resolve import DEMO, Checkpoint, read_config, resolve

Progress = Callable[[int, int], None]
# A model this small gains nothing from more threads, and loses ten times its speed waiting for them on a busy machine.
ONE_THREAD_BELOW = 10_000_000
_PARAM_NAMES = frozenset(f.name for f in fields(Params))


def load(
    source: str | Path | None = None,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    max_rows: int = 16,
    max_context: int | None = None,
    kv_memory: int | None = None,
    prefix_memory: int = 2**30,
    deterministic: bool = False,
    kv_type: str | None = None,
    self_conditioning: str = "auto",
) -> Session:
    """Opens a checkpoint: a folder, a `.safetensors` or `.gguf` file, a hub id; None is the demo model that ships.

    `dtype` names a floating-point type ("float32", "bfloat16", "float16"); None chooses (see `weights.load_model`).
    `threads` None takes all processors, or one for models below 10 M parameters. `progress(done, total)` is called with
    bytes while weights are read. For `max_rows` and what follows see `Engine`.
    `kv_type` is "float32", "bfloat16" or "int8" (see `cache.storage_type`); `self_conditioning` "exact" lets native
    kernels leave nothing out of the soft embedding. Raises NotFound, Offline, BadModelFile, OutOfMemory, UsageError.
    """
    if threads is not None:
        if not 1 <= threads <= 1024:
            raise UsageError(f"threads = {threads} is out of range: 1 to 1024", "threads")
        torch.set_num_threads(threads)
    checkpoint = resolve(source)
    if threads is not None and checkpoint.kind == "gguf" and cpu.available():
        cpu.set_threads(threads)
    is_demo = checkpoint.source == DEMO
    # Beside the weights, which wait for the disk: a vocabulary of 262,144 tokens takes a second.
    with ThreadPoolExecutor(1) as beside:
        text = beside.submit(_open_text, checkpoint)
        loaded = load_model(checkpoint, device=device, dtype=dtype, progress=progress)
    if threads is None and sum(p.numel() for p in loaded.model.parameters()) < ONE_THREAD_BELOW:
        torch.set_num_threads(1)
    tokenizer, template = text.result()
    given, origins = sampling_defaults(loaded.generation, source_of(checkpoint.kind))
    return Session(
        Engine(
            loaded.model,
            max_rows=max_rows,
            max_context=max_context,
            kv_memory=kv_memory,
            prefix_memory=prefix_memory,
            deterministic=deterministic,
            kv_type=_kv_type(kv_type),
            exact=_is_exact(self_conditioning),
        ),
        tokenizer,
        template,
        params=Params(**given),
        eos_token_ids=stop_tokens(loaded.generation, loaded.config.eos_token_ids),
        name=DEMO if is_demo else Path(checkpoint.source).name,
        origins=dict(origins),
        notes=tuple(loaded.notes),
        is_demo=is_demo,
        format=format_of(checkpoint),
    )


def _kv_type(name: str | None) -> torch.dtype | None:
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
    if name is not None and name not in types:
        raise UsageError(f"unknown kv_type {name!r}: choose one of {', '.join(types)}", "kv_type")
    return None if name is None else types[name]


def _is_exact(choice: str) -> bool:
    if choice not in ("auto", "exact"):
        raise UsageError(f"unknown self_conditioning {choice!r}: choose auto or exact", "self_conditioning")
    return choice == "exact"


def _open_text(checkpoint: Checkpoint) -> tuple[Tokenizer, ChatTemplate]:
    if checkpoint.kind == "gguf":
        with GGUFFile(checkpoint.files[0]) as file:
            metadata, markers = file.plain("tokenizer."), family_of_file(file).markers
        tokenizer = Tokenizer.from_gguf(metadata, checkpoint.source, markers)
        return tokenizer, ChatTemplate.from_gguf(metadata, tokenizer)
    tokenizer = Tokenizer.from_folder(checkpoint.folder, family_of(read_config(checkpoint)).markers)
    return tokenizer, ChatTemplate.from_folder(checkpoint.folder, tokenizer)


@dataclass
class Session:
    """A model ready to talk. Not thread-safe; `create_app` serves one to many clients.

    `params` are the checkpoint's sampling defaults, `origins` says where each came from. `format` is what its weights
    are stored as ("BF16", "Q4_K_M"), whatever they were unpacked to; empty if that is not known.
    """

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    params: Params = field(default_factory=Params)
    eos_token_ids: tuple[int, ...] = ()
    name: str = "model"
    origins: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_demo: bool = False
    format: str = ""

    def generate(self, messages: Messages, **options: Any) -> Reply:
        """The whole answer. Options as in `stream`. Raises what made a request fail."""
        tokens: list[int] = []
        text, thinking = "", ""
        calls: list[ToolCall] = []
        for event in self.stream(messages, **options):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Draft):
                continue
            text, thinking = text + event.text, thinking + event.thinking
            calls += event.tool_calls
            if isinstance(event, Committed | Settled):
                tokens += event.tokens
        assert isinstance(event, Finished)
        return Reply(
            text, thinking, tuple(calls), event.reason, event.usage, event.timings, event.seed, tuple(tokens),
            event.canvases,
        )  # fmt: skip

    def stream(self, messages: Messages, **options: Any) -> Iterator[Event]:
        """Yields Draft (with `drafts=True`), Committed, and one Finished or Failed. Closing it cancels the request.

        messages: a prompt, or Messages / OpenAI-style dicts. Options: `system`, `thinking`, `tools` (OpenAI-style
        definitions), `raw` (the prompt is not put through the chat template), `drafts`, `preset`, and every field of
        `Params`. Raises UsageError naming the option at fault.
        """
        request = self.prepare(messages, **options)
        transcript = Transcript(self.tokenizer)
        with closing(self.engine.run(request)) as events:  # type: ignore[type-var]
            for event in events:
                yield transcript.read(event)

    def prepare(
        self,
        messages: Messages,
        *,
        system: str | None = None,
        thinking: bool = False,
        tools: list[dict[str, Any]] | None = None,
        raw: bool = False,
        drafts: bool = False,
        preset: str | None = None,
        **params: Any,
    ) -> Request:
        """The engine's request for messages and options: text becomes token ids here, and nowhere later."""
        tokens = self.encode(messages, system=system, thinking=thinking, tools=tools, raw=raw)
        return Request(tuple(tokens), self.merge(preset, params), self.eos_token_ids, drafts=drafts)

    def encode(
        self,
        messages: Messages,
        *,
        system: str | None = None,
        thinking: bool = False,
        tools: list[dict[str, Any]] | None = None,
        raw: bool = False,
    ) -> list[int]:
        """Token ids of a prompt. Markers in user text stay text."""
        if raw:
            if not isinstance(messages, str):
                raise UsageError("raw takes a prompt string, not messages", "raw")
            bos = self.engine.config.bos_token_id
            return [*([] if bos is None else [bos]), *self.tokenizer.encode(messages)]
        turns = list(_turns(messages, system))
        return self.tokenizer.encode_pieces(self.template.render(turns, tools=tools, thinking=thinking))

    def merge(self, preset: str | None, params: Mapping[str, Any]) -> Params:
        """The checkpoint's defaults, then the preset, then params that are not None; checked."""
        stray = sorted(set(params) - _PARAM_NAMES)
        if stray:
            raise UsageError(
                f"unknown option {stray[0]!r}: known are {', '.join(sorted(_PARAM_NAMES))}", stray[0]
            )
        if preset is not None and preset not in PRESETS:
            raise UsageError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}", "preset")
        given = {name: value for name, value in params.items() if value is not None}
        return check_params(replace(self.params, **{**PRESETS.get(preset or "", {}), **given}))

    def token_text(self, token: int) -> str:
        """How one token reads by itself."""
        return self.tokenizer.token_text(token)


def _turns(messages: Messages, system: str | None) -> Iterable[Message | Mapping[str, Any]]:
    if system is not None:
        yield Message("system", system)
    if isinstance(messages, str):
        yield Message("user", messages)
    else:
        yield from messages


class Transcript:
    """Turns one request's token events into text events: answer, thinking and tool calls apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text = ""  # the answer so far
        self._before = ""  # the answer before the live canvas
        self._parser = ReplyParser(tokenizer)
        self._fork = self._parser.copy()  # as it was when the live canvas began
        self._calls = False

    def read(self, event: Event) -> Event:
        """The same event with its text filled in."""
        if isinstance(event, Draft):
            return replace(event, text=self._draft(event.tokens))
        if isinstance(event, Committed | Settled):
            delta = self._note(self._parser.feed(event.tokens))
            self._text += delta.text
            if isinstance(event, Committed):
                self._fork, self._before = self._parser.copy(), self._text
            return replace(event, text=delta.text, thinking=delta.thinking, tool_calls=delta.tool_calls)
        if isinstance(event, Finished):
            delta = self._note(self._parser.close())
            reason: FinishReason = "tool_calls" if self._calls and event.reason == "stop" else event.reason
            usage = replace(event.usage, reasoning_tokens=self._parser.counts.reasoning_tokens)
            return replace(
                event,
                reason=reason,
                usage=usage,
                text=delta.text,
                thinking=delta.thinking,
                tool_calls=delta.tool_calls,
            )
        return event

    def _note(self, delta: Delta) -> Delta:
        self._calls = self._calls or bool(delta.tool_calls)
        return delta

    def _draft(self, tokens: tuple[int, ...]) -> str:
        """The answer's text if the draft were final."""
        parser = self._fork.copy()
        return self._before + parser.feed(tokens).text + parser.close().text


__all__ = ["Session", "Transcript", "load"]
