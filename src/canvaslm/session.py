"""Text in, text out: joins a tokenizer, a chat template and an engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import torch

from .diffusion import PARAMETERS, check_params
from .diffusion.params import bounded, check_preset, nearest
from .engine import Driver, Engine
from .errors import UsageError
from .model.registry import family_of
from .ops import cpu
from .ops.cpu.loader import default_threads
from .ops.threads import Threads
from .text.chat import ChatTemplate
from .text.tokenizer import Tokenizer
from .text.transcript import ReplyBuilder, Transcript
from .types import (
    Event,
    Failed,
    Finished,
    GenerateOptions,
    LoadingOptions,
    Message,
    Messages,
    Params,
    Reply,
    Request,
    StreamOptions,
)
from .weights.describe import format_of
from .weights.generation import sampling_defaults, source_of, stop_tokens
from .weights.gguf.fields import family_of_file
from .weights.gguf.file import GGUFFile
from .weights.loading.empty import meta_model
from .weights.loading.load import load_model
from .weights.loading.loaded import Loaded
from .weights.resolve import DEMO, Checkpoint, read_config, resolve

Progress = Callable[[int, int], None]
# A model this small gains nothing from more threads, and loses ten times its speed waiting for them on a busy
# machine.
ONE_THREAD_BELOW = 10_000_000
_SEEDS = 2**63


def load(source: str | Path | None = None, **options: Unpack[LoadingOptions]) -> Session:
    """Opens a checkpoint: a folder, a `.safetensors` or `.gguf` file, a hub id; None is
    the demo model that ships.

    `device`: "cpu" (the default), "cuda", "cuda:1". `dtype` names a floating-point type ("float32",
    "bfloat16", "float16"); None chooses. `threads` None takes all processors, or one for models below 10 M
    parameters; it holds while this session runs. `progress(done, total)` is called with bytes while weights
    are read. `max_rows` (16): sequences denoised at once. `max_context`: tokens. `kv_memory`,
    `prefix_memory`: bytes for the keys and values of running sequences (None: no limit) and of remembered
    ones (0: none are). `deterministic`: sums in one order, whatever else runs. `kv_type` is "float32",
    "bfloat16" or "int8"; `self_conditioning` "exact" lets native kernels leave nothing out of the soft
    embedding ("auto" is the default).

    Raises NotFound, Offline, BadModelFile, OutOfMemory, UsageError.

    >>> session = canvaslm.load(max_rows=4)
    >>> session.name
    'demo'
    """
    _check_names(options, LoadingOptions.__annotations__)
    return _load(source, **options)


def _load(
    source: str | Path | None,
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
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"threads = {threads} is out of range: 1 to 1024", "threads")
    checkpoint = resolve(source)
    # Beside the weights, which wait for the disk: a vocabulary of 262,144 tokens takes a second.
    with ThreadPoolExecutor(1) as beside, _threads(threads, checkpoint).in_use():
        text = beside.submit(_open_text, checkpoint)
        loaded = load_model(checkpoint, device=device, dtype=dtype, progress=progress)
    if threads is None and _is_tiny(loaded):
        threads = 1
    tokenizer, template = text.result()
    given, origins = sampling_defaults(loaded.generation, source_of(checkpoint.kind))
    is_demo = checkpoint.source == DEMO
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
        notes=(*loaded.notes, *(cpu.notes() if checkpoint.kind == "gguf" else ())),
        is_demo=is_demo,
        format=format_of(checkpoint),
        threads=_threads(threads, checkpoint),
    )


def _threads(count: int | None, checkpoint: Checkpoint) -> Threads:
    """As many for torch, and for the native kernels, which serve GGUF files alone."""
    if checkpoint.kind != "gguf" or not cpu.available():
        return Threads(count)
    return Threads(count, count or default_threads())


def _is_tiny(loaded: Loaded) -> bool:
    """Whether one thread is best. Repacked weights are no parameters: then the shapes of all are counted."""
    if sum(p.numel() for p in loaded.model.parameters()) >= ONE_THREAD_BELOW:
        return False
    shapes = meta_model(loaded.config)
    return sum(p.numel() for p in shapes.parameters()) < ONE_THREAD_BELOW


def _check_names(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UsageError that names the first unknown option, and the known one that it looks like."""
    names = list(known)
    for name in options:
        if name not in names:
            like = nearest(name, names)
            hint = f"did you mean {like!r}?" if like else f"known are {', '.join(sorted(names))}"
            raise UsageError(f"unknown option {name!r}: {hint}", name)


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

    `params` are the checkpoint's sampling defaults, `origins` says where each came from. `format` is what its
    weights are stored as ("BF16", "Q4_K_M"), whatever they were unpacked to; empty if that is not known.

    >>> with canvaslm.load() as session:
    ...     session.generate("capital of France", seed=0).text
    'Paris'
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
    threads: Threads = field(default_factory=Threads)
    driver: Driver = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.driver = Driver(self.engine, self.threads.in_use)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what runs and frees the keys and values that were remembered.
        Nothing can be asked after it."""
        self._closed = True
        self.driver.close()
        self.engine.prefixes.clear()

    def generate(self, messages: Messages, **options: Unpack[GenerateOptions]) -> Reply:
        """The whole answer. Options as in `stream`. Raises what made a request fail.

        >>> reply = session.generate("capital of France", seed=0)
        >>> reply.text, reply.finish_reason
        ('Paris', 'stop')
        """
        answer = ReplyBuilder()
        for event in self.stream(messages, **options):
            answer.add(event)
        return answer.reply()

    def stream(self, messages: Messages, **options: Unpack[StreamOptions]) -> Generator[Event, None, None]:
        """Yields Draft (with `drafts=True`), Settled, Committed, and one Finished or Failed.

        Closing it cancels the request. Several streams of one session may be read in turn, one inside another
        too: their canvases are then denoised together.

        messages: a prompt, or Messages / OpenAI-style dicts. Options: `system`; `thinking`; `tools`
        (OpenAI-style definitions); `raw` (the prompt is not put through the chat template); `stop` (a text,
        or several, before which the answer ends); `logprobs` (log-probabilities of the answer's tokens and of
        so many others at each place, 0 to 20); `given` ({place of the answer: token id}, fixed); `drafts`;
        `preset`; and every field of `Params`. Raises UsageError naming the option at fault.

        >>> for event in session.stream("capital of France", seed=0):
        ...     print(type(event).__name__, repr(event.text))
        Committed 'Paris'
        Finished ''
        """
        request, transcript = self._request(messages, options)
        with closing(self.driver.events(request)) as events:
            for event in events:
                read = transcript.read(event)
                if transcript.stopped:
                    events.cancel()
                yield read

    def generate_many(
        self,
        prompts: Iterable[Messages],
        *,
        in_flight: int | None = None,
        ordered: bool = True,
        **options: Unpack[GenerateOptions],
    ) -> Generator[Reply, None, None]:
        """The answers to many prompts, which are denoised together: in the order of the
        prompts, or as they come.

        `prompts` may be endless: no more than `in_flight` of them (None: as many as the engine has rows) run
        at a time. `reply.index` is the number of its prompt. With a `seed`, prompt number i has the seed plus
        i. Raises what made a request fail; the others are then cancelled.

        >>> for reply in session.generate_many(["capital of France", "capital of Japan"], seed=0):
        ...     print(reply.index, reply.text)
        0 Paris
        1 Tokyo
        """
        answers: dict[int, ReplyBuilder] = {}
        done: dict[int, Reply] = {}
        following = 0
        with closing(self.stream_many(prompts, in_flight=in_flight, **options)) as events:
            for index, event in events:
                answers.setdefault(index, ReplyBuilder()).add(event)
                if not isinstance(event, Finished):
                    continue
                reply = answers.pop(index).reply(index)
                if not ordered:
                    yield reply
                    continue
                done[index] = reply
                while following in done:
                    yield done.pop(following)
                    following += 1

    def stream_many(
        self, prompts: Iterable[Messages], *, in_flight: int | None = None, **options: Unpack[StreamOptions]
    ) -> Generator[tuple[int, Event], None, None]:
        """(number of the prompt, event) of many prompts, as they come. See `generate_many` and `stream`.

        >>> prompts = ["capital of France", "capital of Japan"]
        >>> texts = ["", ""]
        >>> for index, event in session.stream_many(prompts, seed=0):
        ...     texts[index] += event.text
        >>> texts
        ['Paris', 'Tokyo']
        """
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise UsageError("prompts should be several prompts; for one there is generate", "prompts")
        if in_flight is not None and in_flight < 1:
            raise UsageError(f"in_flight = {in_flight} is out of range: at least 1", "in_flight")
        transcripts: dict[int, Transcript] = {}

        def requests() -> Iterator[Request]:
            for index, messages in enumerate(prompts):
                request, transcripts[index] = self._request(messages, _numbered(options, index))
                yield request

        count = in_flight or self.engine.scheduler.max_rows
        with closing(self.driver.events_of_many(requests(), count)) as events:
            for index, event in events:
                transcript = transcripts[index]
                read = transcript.read(event)
                if isinstance(event, Finished | Failed):
                    del transcripts[index]
                elif transcript.stopped:
                    self.driver.cancel(event.request_id)
                yield index, read

    def prepare(self, messages: Messages, **options: Unpack[StreamOptions]) -> Request:
        """The engine's request for messages and options: text becomes token ids here, and nowhere later."""
        return self._request(messages, options)[0]

    def _request(self, messages: Messages, options: StreamOptions) -> tuple[Request, Transcript]:
        """The engine's request, and what turns its events into text."""
        if self._closed:
            raise UsageError("the session is closed: load the model again")
        _check_names(options, StreamOptions.__annotations__)
        params = {name: options.get(name) for name in PARAMETERS}
        best = _best(options.get("logprobs"))
        transcript = Transcript(self.tokenizer, stop=options.get("stop"), logprobs=best is not None)
        tokens = self.encode(
            messages,
            system=options.get("system"),
            thinking=options.get("thinking", False),
            tools=options.get("tools"),
            raw=options.get("raw", False),
        )
        request = Request(
            tuple(tokens),
            self.merge(options.get("preset"), params),
            self.eos_token_ids,
            given=_given(options.get("given")),
            drafts=options.get("drafts", False),
            top_logprobs=best,
        )
        return request, transcript

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
        _check_names(params, PARAMETERS)
        chosen = check_preset(preset) if preset is not None else {}
        given = {name: value for name, value in params.items() if value is not None}
        merged = check_params(replace(self.params, **{**chosen, **given}))
        return bounded(merged, self.engine.max_context)

    def token_text(self, token: int) -> str:
        """How one token reads by itself."""
        return self.tokenizer.token_text(token)


def _turns(messages: Messages, system: str | None) -> Iterable[Message | Mapping[str, Any]]:
    if system is not None:
        yield Message("system", system)
    if isinstance(messages, str):
        yield Message("user", messages)
    elif isinstance(messages, Iterable) and not isinstance(messages, bytes | Mapping):
        yield from messages
    else:
        found = type(messages).__name__
        raise UsageError(f"messages should be a prompt or a list of messages, found {found}", "messages")


def _best(logprobs: int | None) -> int | None:
    """Log-probabilities of how many tokens beside the answer's own; None for none at all."""
    if logprobs is None or logprobs is False:
        return None
    if not isinstance(logprobs, int):
        raise UsageError(f"logprobs should be a whole number, found {logprobs!r}", "logprobs")
    return 0 if logprobs is True else logprobs


def _given(given: Mapping[int, int] | None) -> Mapping[int, int]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(n, int) for n in (*given, *given.values())):
        raise UsageError("given should be a table of places and token ids, as {0: 17}", "given")
    return given


def _numbered(options: StreamOptions, index: int) -> StreamOptions:
    """The options of prompt number `index` of several: a seed that is given goes up by one for each."""
    seed = options.get("seed")
    if not isinstance(seed, int) or seed < 0:
        return options
    return {**options, "seed": (seed + index) % _SEEDS}


__all__ = ["Session", "load"]
