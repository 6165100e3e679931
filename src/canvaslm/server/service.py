"""What all dialects share: from what a client wants to a running answer (`Answers`) whose events carry text.

    wanted = GenerationRequest(messages=[...], params={"seed": 1})
    answers = await service.start(wanted)      # raises before anything is sent
    async for part in answers: ...             # ends after the last choice's end
    answers.close()                            # cancels what still runs

The engine is never touched here: prompts are rendered and encoded on a few worker threads, and
all else is the bridge's.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from starlette.requests import Request as HttpRequest

from ..constrain.tools import ToolCalls
from ..errors import CanvasError, PromptTooLong
from ..text.toolcalls import tool_names
from ..text.transcript import Transcript
from ..types import AdapterUse, Constraint, Failed, Finished, Note, Request, Structure, TokenRules
from .adapters import ServedAdapters
from .bridge import Bridge, RequestGroup
from .choices import ChoiceEvent, as_warnings
from .filling import FillAnswers
from .limits import Limits
from .metrics import ServerMetrics
from .problems import Problem, problem_of, unfinished, unsupported

if TYPE_CHECKING:
    from ..session import Session
    from ..session.filling import FillPlan
    from ..session.template import Template

Prompt = str | Sequence[int]
_SEEDS = 2**63


@dataclass(frozen=True)
class FillingRequest:
    """A text with holes, and its options as in `Session.fill`. `whole`: the answer is all of the text, not
    that of its only hole."""

    template: Template
    instruction: str | None = None
    system: str | None = None
    draft: str | None = None
    whole: bool = False


@dataclass(frozen=True)
class GenerationRequest:
    """What a client wants, in our words.

    Either `messages`, put through the chat template, or `prompts`, texts or token ids taken as they
    are. `params` are fields of `Params`; those that are None take the checkpoint's default. `names`
    are the client's names for such fields, for error messages. Of `n` answers to each prompt,
    number i has the seed plus i.
    """

    messages: Any = None
    prompts: Sequence[Prompt] = ()
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    n: int = 1
    stop: str | Sequence[str] | None = None
    drafts: bool = False
    top_logprobs: int | None = None
    doubt: bool = False  # what the causal reader thinks of each token comes beside the log-probabilities
    prompt_logprobs: int | None = None  # of how many tokens of each place of the prompt; None: it is not read
    prompt_only: bool = False  # nothing is to be written
    controls: bool = False  # log-probabilities of control tokens, too
    rules: TokenRules = field(default_factory=TokenRules)
    structure: Structure | None = None
    no_calls: bool = False  # no tool may be called
    draft: str = ""  # a guess of the answer
    names: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None  # the name that the client has for it, of an adapter maybe
    lora: Sequence[tuple[int, float]] | None = None  # adapters by number, with scales

    @property
    def count(self) -> int:
        """Requests that the engine will get."""
        return self.n * (1 if self.messages is not None else len(self.prompts))


class Answers:
    """The pieces of all choices as they come. Choices are numbered prompt by prompt.

    Raises what a choice failed with; the others are then cancelled. `empty`: what the client gets nothing of.
    """

    def __init__(
        self,
        group: RequestGroup,
        transcripts: Sequence[Transcript],
        metrics: ServerMetrics,
        model: str,
        free: Sequence[str] = (),
    ) -> None:
        """model: its name; free: tools whose arguments were to follow a schema, and are as the model writes
        them."""
        self.model = model
        self.requests = group.requests
        self.empty: set[int] = set()
        self._notes: dict[int, tuple[Note, ...]] = {}
        self._group, self._transcripts, self._metrics, self._free = group, transcripts, metrics, free
        self._silent = set(range(len(group.requests)))

    @property
    def seed(self) -> int:
        """The first choice's."""
        seed = self.requests[0].params.seed
        assert seed is not None
        return seed

    async def __aiter__(self) -> AsyncIterator[ChoiceEvent]:
        try:
            async for index, event in self._group:
                if isinstance(event, Failed):
                    raise event.error
                transcript = self._transcripts[index]
                event = transcript.read(event)
                if transcript.stopped and index not in self._group.stopped:
                    self._group.cancel(index, stopped=True)
                if isinstance(event, Finished) and event.reason == "cancelled":
                    raise unfinished()
                if isinstance(event, Finished) and self.requests[index].prompt_only:
                    event = replace(event, reason="length")  # as OpenAI says it of no tokens
                piece = ChoiceEvent(index, event)
                self._listen(piece)
                yield piece
        finally:
            self.close()

    def _listen(self, piece: ChoiceEvent) -> None:
        """Notes which choices end without having said anything. One that a stop string cut was to be so."""
        if piece.says:
            self._silent.discard(piece.choice)
        if isinstance(piece.event, Finished):
            self._notes[piece.choice] = piece.event.notes
        if not isinstance(piece.event, Finished) or piece.choice not in self._silent:
            return
        if self.stop_string(piece.choice) is None and not self.requests[piece.choice].prompt_only:
            self.empty.add(piece.choice)
            self._metrics.empty()

    def warnings(self, told: Sequence[dict[str, str]], choice: int | None = None) -> dict[str, Any]:
        """The field `warnings` of an answer, or nothing: what is told anyway, and the
        choices (or only the one given) that are empty, have damaged tool calls, call tools
        that there are not, or came to be with a note."""
        choices = range(len(self.requests)) if choice is None else (choice,)
        made = [*told, *map(_freedom, () if choice else self._free)]
        for index in choices:
            if index in self.empty:
                made.append(_emptiness(index, len(self.requests)))
            made += _of_calls(self._transcripts[index])
            made += as_warnings(self._notes.get(index, ()))
        return {"warnings": made} if made else {}

    def stop_string(self, choice: int = 0) -> str | None:
        """The stop string that ended a choice; None while none has."""
        return self._transcripts[choice].stop_string

    def close(self) -> None:
        """Cancels what still runs."""
        self._group.close()


class Service:
    """The server's core. Routes get it by a parameter of type `Ready` (or `Anytime`,
    also while the model loads)."""

    def __init__(
        self, bridge: Bridge, limits: Limits, metrics: ServerMetrics, adapters: ServedAdapters
    ) -> None:
        self.bridge, self.limits, self.metrics, self.adapters = bridge, limits, metrics, adapters
        self.started = int(time.time())
        self._workers = ThreadPoolExecutor(2, "canvaslm-prompts")
        self._compilers = ThreadPoolExecutor(1, "canvaslm-constraints")
        self._fingerprint: str | None = None
        self._longest_token: int | None = None  # bytes

    @property
    def session(self) -> Session:
        """Raises Problem (503) while there is none."""
        return self.bridge.session

    @property
    def fingerprint(self) -> str:
        """Changes when the same seed may give another answer: with the model, its
        settings and our version."""
        if self._fingerprint is None:
            from ..version import __version__

            runner = self.session.engine.runner
            facts = (__version__, self.session.name, self.session.engine.config, runner.device, runner.dtype)
            self._fingerprint = "fp_" + hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
        return self._fingerprint

    def fingerprint_of(self, answers: AnyAnswers) -> str:
        """That of the model, and of the adapters that an answer is written with."""
        uses = answers.requests[0].adapters
        if not uses:
            return self.fingerprint
        each = [(use.adapter.encode_digest, use.adapter.denoise_digest, use.scale) for use in uses]
        return "fp_" + hashlib.sha256(repr((self.fingerprint, each)).encode()).hexdigest()[:12]

    def now(self) -> int:
        """Unix time, for answers."""
        return int(time.time())

    async def start(self, wanted: GenerationRequest) -> Answers:
        """Submits what is asked for. Raises Problem or CanvasError with nothing running."""
        self._check(wanted)
        served = await self.adapters.choose(wanted.model, wanted.lora)
        self.bridge.reserve(wanted.count)
        try:
            transcripts = [self._transcript(wanted) for _ in range(wanted.count)]
            constraint = await self._compiled(wanted)
            requests = await self.work(self._prepare, wanted, constraint, served.adapters)
        except BaseException as error:
            self.bridge.release(wanted.count)
            if isinstance(error, CanvasError):
                raise problem_of(error, wanted.names) from error
            raise
        try:
            free = constraint.free if isinstance(constraint, ToolCalls) else ()
            return Answers(await self.bridge.launch(requests), transcripts, self.metrics, served.name, free)
        except CanvasError as error:
            raise problem_of(error, wanted.names) from error

    async def fill(self, wanted: GenerationRequest, filling: FillingRequest) -> FillAnswers:
        """As `start`, of a text with holes, which brings its own prompt."""
        refused = {
            "n": wanted.n != 1,
            "doubt": wanted.doubt,
            "logprobs": wanted.top_logprobs is not None,
            "logit_bias": wanted.rules != TokenRules(),
            "tools": bool(wanted.tools),
            wanted.structure.param if wanted.structure else "grammar": wanted.structure is not None,
        }
        for param, given in refused.items():
            if given:
                raise unsupported(param, f"{param} is not possible where text is filled in: leave it out")
        try:
            served = await self.adapters.choose(wanted.model, wanted.lora)
            plan = await self.work(self._fill_plan, wanted, filling, served.adapters)
            return await FillAnswers.start(self, plan, whole=filling.whole, model=served.name)
        except CanvasError as error:
            raise problem_of(error, wanted.names) from error

    def _fill_plan(
        self, wanted: GenerationRequest, filling: FillingRequest, adapters: tuple[AdapterUse, ...]
    ) -> FillPlan:
        texts = [*filling.template.given, filling.instruction or "", filling.system or ""]
        self.check_size(replace(wanted, messages=None, prompts=texts))
        options: Any = {
            **wanted.params, "preset": wanted.preset, "stop": wanted.stop, "instruction": filling.instruction,
            "system": filling.system, "draft": filling.draft, "adapter": adapters,
        }  # fmt: skip
        return self.session.plan_fill(filling.template, options, drafts=wanted.drafts)

    async def encode(self, wanted: GenerationRequest) -> list[tuple[int, ...]]:
        """Token ids of the prompts, without running anything. Raises Problem."""
        self.adapters.name_of(wanted.model)
        try:
            tokens: list[tuple[int, ...]] = await self.work(self._tokens, wanted)
        except CanvasError as error:
            raise problem_of(error, wanted.names) from error
        return tokens

    async def work(self, function: Any, *arguments: Any) -> Any:
        """Runs what takes long, and is not the engine's, on a worker thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, function, *arguments)

    async def _compiled(self, wanted: GenerationRequest) -> Constraint | None:
        """On a thread of its own: what takes its time there keeps other prompts from nothing."""
        if wanted.structure is None:
            return None
        loop, session = asyncio.get_running_loop(), self.session
        compiling = partial(session.constraint_of, wanted.structure, thinking=wanted.thinking)
        return await loop.run_in_executor(self._compilers, compiling)

    def close(self) -> None:
        self.adapters.close()
        for threads in (self._workers, self._compilers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _check(self, wanted: GenerationRequest) -> None:
        if not 1 <= wanted.n <= self.limits.max_n:
            raise Problem(400, f"n = {wanted.n} is out of range: 1 to {self.limits.max_n}", param="n")
        if wanted.count < 1:
            raise Problem(400, "the prompt is empty", param="prompt")
        if wanted.count > self.limits.max_queue + self.session.engine.scheduler.max_rows:
            raise Problem(400, f"{wanted.count} answers at once are more than this server takes", param="n")

    def _transcript(self, wanted: GenerationRequest) -> Transcript:
        return Transcript(
            self.session.tokenizer,
            stop=wanted.stop,
            raw=wanted.messages is None,
            logprobs=wanted.top_logprobs is not None,
            controls=wanted.controls,
            tools=tool_names(wanted.tools),
        )

    def _prepare(
        self,
        wanted: GenerationRequest,
        constraint: Constraint | None,
        adapters: tuple[AdapterUse, ...] = (),
    ) -> list[Request]:
        params = self.session.merge(wanted.preset, wanted.params)
        # 32 bits, as the engine's own: readers of JSON that know only doubles round what is above 2^53.
        base = secrets.randbits(32) if params.seed is None else params.seed
        marks = None if wanted.messages is None else self.session.marks
        draft = self.session.draft_places(wanted.draft)
        return [
            Request(
                tokens,
                replace(params, seed=(base + i) % _SEEDS),
                self.session.eos_token_ids,
                drafts=wanted.drafts,
                top_logprobs=wanted.top_logprobs,
                reads=wanted.doubt,
                prompt_logprobs=wanted.prompt_logprobs,
                prompt_only=wanted.prompt_only,
                rules=self.session.without_calls(wanted.rules) if wanted.no_calls else wanted.rules,
                marks=marks,
                constraint=constraint,
                draft=draft,
                adapters=adapters,
            )
            for tokens in self._tokens(wanted)
            for i in range(wanted.n)
        ]

    def _tokens(self, wanted: GenerationRequest) -> list[tuple[int, ...]]:
        session = self.session
        self.check_size(wanted)
        if wanted.messages is not None:
            return [
                tuple(session.encode(wanted.messages, thinking=wanted.thinking, tools=wanted.tools or None))
            ]
        return [
            tuple(session.encode(prompt, raw=True)) if isinstance(prompt, str) else tuple(prompt)
            for prompt in wanted.prompts
        ]

    def check_size(self, wanted: GenerationRequest) -> None:
        """Refuses what is sure to be too long without spending seconds on its
        tokens. Raises PromptTooLong."""
        context = self.session.engine.max_context
        if self._longest_token is None:
            tokenizer = self.session.tokenizer
            self._longest_token = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))
        turns = wanted.messages if isinstance(wanted.messages, list) else []
        texts = [_text_of(turn) for turn in turns] if wanted.messages is not None else wanted.prompts
        longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
        if longest > context * self._longest_token or 2 * len(turns) > context:
            raise PromptTooLong(
                f"the prompt does not fit the context of {context} tokens: shorten it", "messages"
            )


def _emptiness(index: int, count: int) -> dict[str, str]:
    which = "the answer" if count == 1 else f"answer {index}"
    return {
        "param": "",
        "code": "empty_answer",
        "message": f"{which} is empty: the model ended it without any text; ask again with another seed, or "
        "say more in the prompt",
    }


def _freedom(name: str) -> dict[str, str]:
    return {
        "param": "tools",
        "code": "free_arguments",
        "message": f"the schema of {name!r} is beyond what can be guaranteed: its arguments are as the model "
        "writes them",
    }


def _of_calls(transcript: Transcript) -> list[dict[str, str]]:
    """What is to be told of a choice's tool calls."""
    healed = {
        name: f"a call of {name!r} was damaged and has been healed: check its arguments"
        for name in transcript.healed_calls
    }
    unknown = {
        name: f"the model called {name[:80]!r}, which is no tool of this request: the call is in the text"
        for name in transcript.unknown_tools
    }
    told = [("healed_tool_call", message) for message in healed.values()]
    told += [("unknown_tool", message) for message in unknown.values()]
    return [{"param": "tools", "code": code, "message": message} for code, message in told]


def _text_of(turn: Any) -> str:
    """Text that a turn brings for sure: of answers, templates leave thoughts out."""
    content = turn.get("content") if isinstance(turn, Mapping) and turn.get("role") != "assistant" else None
    return content.strip() if isinstance(content, str) else ""


def service_of(request: HttpRequest) -> Service:
    """The service of the application that a request came to."""
    service: Service = request.app.state.service
    return service


def _ready(request: HttpRequest) -> Service:
    service = service_of(request)
    _ = service.session
    return service


Anytime = Annotated[Service, Depends(service_of)]
Ready = Annotated[Service, Depends(_ready)]

AnyAnswers = Answers | FillAnswers

__all__ = [
    "Answers",
    "AnyAnswers",
    "Anytime",
    "FillingRequest",
    "GenerationRequest",
    "Prompt",
    "Ready",
    "Service",
    "service_of",
]
