"""Text in, text out: joins a tokenizer, a chat template and an engine."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self, Unpack

from ..constrain.compiler import Compiler
from ..decisions.answers import Decisions
from ..decisions.calibration import Calibration
from ..decisions.plan import DecisionPlan
from ..diffusion import PARAMETERS, check_params
from ..diffusion.params import bounded, check_preset
from ..engine import Driver, Engine
from ..engine.canvases import canvas_length
from ..errors import UsageError
from ..ops.threads import Threads
from ..options import AnswerOptions, DecideOptions, FillOptions, GenerateOptions, ScoreOptions, StreamOptions
from ..text.chat import ChatTemplate
from ..text.scores import Scored
from ..text.tokenizer import Tokenizer
from ..text.transcript import ReplyBuilder, Transcript
from ..text.turn_marks import turn_marks
from ..types import (
    Constraint,
    Draft,
    Event,
    Failed,
    Filled,
    Finished,
    Messages,
    Params,
    Reply,
    Request,
    Structure,
    TokenRules,
    TurnMarks,
)
from .adapters import Adapters
from .asking import request_of
from .deciding import Questions, plan_decide, run_plans
from .filling import FillPlan
from .infill import Spans, edit_prompt, edit_template, filled_by, plan_fill, run_fill
from .options import check_names, numbered, turns_of
from .ranking import run_generate
from .scoring import run_score
from .seams import Seams
from .structures import compiler_for, parsed
from .template import Template, check_text, infill_template, parse


@dataclass
class Session:
    """A model ready to talk. Not thread-safe; `create_app` serves one to many clients.

    `params` are the checkpoint's sampling defaults, `origins` says where each came from. `format` is what its
    weights are stored as ("BF16", "Q4_K_M"), whatever they were unpacked to; empty if that is not known.
    `adapters` has the LoRA adapters that answers may be written with: `session.adapters.load(name, folder)`,
    then `session.generate("Hello", adapter=name)`.

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
    calibration: Calibration = field(default_factory=Calibration)
    driver: Driver = field(init=False, repr=False)
    compiler: Compiler = field(init=False, repr=False)
    adapters: Adapters = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.driver = Driver(self.engine, self.threads.in_use)
        self.adapters = Adapters(self.engine.runner.model, reserved=(self.name,))
        self._closed = False
        self._marks: TurnMarks | None = None
        config = self.engine.config
        self.compiler = compiler_for(
            self.tokenizer, config.vocab_size, self.eos_token_ids, config.pad_token_id
        )

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

    def generate(self, messages: Messages, **options: Unpack[AnswerOptions]) -> Reply:
        """The whole answer. Options as in `stream`, and `best_of` (of so many answers, with the seed, the
        seed plus 1 ..., that of which the causal reader thinks best; all are in `ranking`) and
        `retry_doubtful` (doubtful tokens are written once more): docs/doubt.md. Raises what made it fail.

        >>> reply = session.generate("capital of France", seed=0)
        >>> reply.text, reply.finish_reason
        ('Paris', 'stop')
        """
        return run_generate(self, messages, options)

    def stream(self, messages: Messages, **options: Unpack[StreamOptions]) -> Generator[Event, None, None]:
        """Yields Draft (with `drafts=True`), Settled, Committed, and one Finished or Failed.

        Closing it cancels the request. Several streams of one session may be read in turn, one inside another
        too: their canvases are then denoised together.

        messages: a prompt, or Messages / OpenAI-style dicts. Options: `system`; `thinking`; `tools`
        (OpenAI-style definitions); `raw` (the prompt is not put through the chat template); `stop` (a text,
        or several, before which the answer ends); `logprobs` (log-probabilities of the answer's tokens and of
        so many others at each place, 0 to 20); `doubt` (with them, what the causal reader thinks of each
        token; then no canvas is sent in part); `given` ({place of the answer: token id}, fixed);
        `logit_bias` ({token id: what is added to its logit}, -100 and less forbids it); `allowed_token_ids`
        (no others come); `draft` (a guess of the answer, which its canvases begin with, but for the share
        `draft_noise` of the places, 0.8); one of `schema` (a JSON schema, pydantic model or TypedDict),
        `regex`, `choice` (texts) and `grammar` (GBNF or Lark), which the answer then is for sure, or
        `bad_words` (texts that it does not have); `adapter` (a name in `adapters`, or a list of names and of
        pairs of name and scale, which add up); `drafts`; `preset`; and every field of `Params`. Raises
        UsageError naming the option at fault, NotFound for an adapter.

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
                answer = answers.pop(index)
                reply = replace(answer.reply(index), parsed=parsed(options, answer.text))
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
                request, transcripts[index] = self._request(messages, numbered(options, index))
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

    def infill(self, prefix: str, suffix: str = "", **options: Unpack[FillOptions]) -> Filled:
        """What belongs between two texts, which come back as they are. Options as in `fill`.

        >>> asked = "Write a function triple that multiplies x by 3."
        >>> session.infill("def triple(", " * 3", instruction=asked, seed=0).holes
        ('x):\\n    return x',)
        """
        check_text(prefix, "prefix")
        check_text(suffix, "suffix")
        return self._fill(infill_template(prefix, suffix), options)

    def fill(self, template: str | Template, **options: Unpack[FillOptions]) -> Filled:
        """A text with its holes filled, several at once where they stand on one canvas.

        template: `<hole>` or `<hole max=40>` (tokens) where text is wanted; `\\<hole>` is that text itself.
        What is given comes back byte for byte. Options: `instruction`, what the text shall say (the user's
        turn; without it the model has the text alone); `draft`, a guess (of each hole), of which canvases
        begin but for a share of `draft_noise` (0.8); `stop`; `system`; `thinking`; `adapter`; `preset`; and
        every field of `Params`, of which `max_new_tokens` is what each hole may have. A hole with text behind
        it has at most the tokens of four canvases; one that is cut is told in `notes`.

        >>> filled = session.fill("capital of France: <hole>.", seed=0)
        >>> filled.text == f"capital of France: {filled.holes[0]}."
        True
        """
        return self._fill(parse(template) if isinstance(template, str) else template, options)

    def edit(self, text: str, spans: Spans, wanted: str, **options: Unpack[FillOptions]) -> Filled:
        """A text of which only the spans, (start, end) in characters, are written anew, as is `wanted`.

        >>> asked = "Write a function triple that multiplies x by 3."
        >>> session.edit("def triple(x):\\n    return x + 3", [(28, 29)], asked, seed=0).text
        'def triple(x):\\n    return x * 3'
        """
        for event in self.stream_edit(text, spans, wanted, **options):
            if isinstance(event, Filled):
                return event
        raise AssertionError("a stream ends with what it fills")

    def stream_edit(
        self, text: str, spans: Spans, wanted: str, **options: Unpack[FillOptions]
    ) -> Generator[Draft | Filled, None, None]:
        """As `edit`, with a Draft after every step as in `stream_fill`."""
        check_text(wanted, "instruction")
        template = edit_template(text, spans)
        options["instruction"] = edit_prompt(text, spans, wanted, demo=self.is_demo)
        return self.stream_fill(template, **options)

    def stream_fill(
        self, template: str | Template, **options: Unpack[FillOptions]
    ) -> Generator[Draft | Filled, None, None]:
        """As `fill`: a Draft with the whole text after every step, and at last the Filled.
        Closing it cancels what runs."""
        plan = self.plan_fill(
            parse(template) if isinstance(template, str) else template, options, drafts=True
        )
        yield (yield from run_fill(self, plan))

    def plan_fill(self, template: Template, options: FillOptions, *, drafts: bool = False) -> FillPlan:
        """How a text is filled, for whoever runs engines. Raises UsageError naming the option at fault."""
        if self._closed:
            raise UsageError("the session is closed: load the model again")
        return plan_fill(self, template, options, drafts=drafts)

    @cached_property
    def seams(self) -> Seams:
        """Its tokens by how they begin and end."""
        return Seams(self.tokenizer)

    def _fill(self, template: Template, options: FillOptions) -> Filled:
        return filled_by(run_fill(self, self.plan_fill(template, options)))

    def decide(self, state: Any, questions: Questions, **options: Unpack[DecideOptions]) -> Decisions:
        """Answers to questions about a state (a text, or plain data): a probability for every answer that is
        allowed, from one denoise step, and no text.

        questions: one, a list, or a table by names, of `canvaslm.predicate`, `choice` and `score`. Each is
        answered for itself, so that its answer is the same whatever else is asked. Options, all off by
        default: `samples` (1 to 16 draws of noise, averaged), `steps` (1 to 8), `permute` (averages over
        rotated orders of the options; True: over all, at most 16), `joint` (questions on one canvas: fewer
        rows, but they see each other), `labels` ("letters"; "values": options are their own labels, and no
        list of them is shown; or a list of labels of one token), `reader` ("canvas", or "causal": the model's
        next-token distribution, without a canvas), `instructions` (said before the state), `adapter`.

        >>> asked = canvaslm.choice("Capital of France?", ["Paris", "Berlin", "Rome"])
        >>> session.decide("", asked)[0].best
        'Paris'
        """
        (made,) = run_plans(self, [self.plan_decide(state, questions, options)])
        return made

    def plan_decide(self, state: Any, questions: Questions, options: DecideOptions) -> DecisionPlan:
        """How questions are answered, for whoever runs engines. Raises UsageError naming the option at
        fault."""
        if self._closed:
            raise UsageError("the session is closed: load the model again")
        return plan_decide(self, state, questions, options)

    def score(self, messages: Messages, text: str, **options: Unpack[ScoreOptions]) -> Scored:
        """The log-probability of a text behind a prompt, token by token; nothing is written.

        The model's causal reader says it, from one pass, at temperature 1. The text's tokens are those that
        it has by itself; that the answer ends behind it is not asked. Options: `system`, `thinking`, `raw`
        and `adapter` as in `stream`.

        >>> session.score("capital of France", "Paris").perplexity < 1.01
        True
        """
        return self.score_many(messages, [text], **options)[0]

    def score_many(
        self, messages: Messages, texts: Iterable[str], **options: Unpack[ScoreOptions]
    ) -> list[Scored]:
        """As `score`, of several texts behind one prompt, which is encoded once.

        >>> found = session.score_many("capital of France", ["Rome", "Paris", "Berlin"])
        >>> max(found, key=lambda scored: scored.logprob).text
        'Paris'
        """
        if self._closed:
            raise UsageError("the session is closed: load the model again")
        return run_score(self, messages, texts, options)

    def prepare(self, messages: Messages, **options: Unpack[StreamOptions]) -> Request:
        """The engine's request for messages and options: text becomes token ids here, and nowhere later."""
        return self._request(messages, options)[0]

    def _request(self, messages: Messages, options: StreamOptions) -> tuple[Request, Transcript]:
        """The engine's request, and what turns its events into text."""
        if self._closed:
            raise UsageError("the session is closed: load the model again")
        return request_of(self, messages, options)

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
        turns = list(turns_of(messages, system))
        return self.tokenizer.encode_pieces(self.template.render(turns, tools=tools, thinking=thinking))

    def draft_places(self, text: str | None) -> dict[int, int]:
        """{place of the answer: token} of a guess of it, its end included. Raises UsageError if it is no
        text."""
        if text is not None and not isinstance(text, str):
            raise UsageError(f"draft should be a text, found {type(text).__name__}", "draft")
        return dict(enumerate([*self.tokenizer.encode(text), *self.eos_token_ids[:1]])) if text else {}

    def constraint_of(self, structure: Structure | None, *, thinking: bool = False) -> Constraint | None:
        """What sees to it that an answer is what it has to be; `thinking`: a thought may stand before it.

        Takes up to seconds where the same was not asked for before. Safe to call on any thread. Raises
        UsageError.
        """
        return None if structure is None else self.compiler.compile(structure, thinking=thinking)

    def without_calls(self, rules: TokenRules) -> TokenRules:
        """The rules, and that no tool is called: the marker of a call never comes."""
        call = self.tokenizer.marker_id(self.tokenizer.markers.call[0])
        if call is None:
            return rules
        others = tuple((token, bias) for token, bias in rules.biases if token != call)
        return replace(rules, biases=(*others, (call, -math.inf)))

    def merge(self, preset: str | None, params: Mapping[str, Any]) -> Params:
        """The checkpoint's defaults, then the preset, then params that are not None; checked."""
        check_names(params, PARAMETERS)
        chosen = check_preset(preset) if preset is not None else {}
        given = {name: value for name, value in params.items() if value is not None}
        merged = check_params(replace(self.params, **{**chosen, **given}))
        canvas_length(merged, self.engine.config)  # raises for one that the model cannot have
        return bounded(merged, self.engine.max_context)

    @property
    def marks(self) -> TurnMarks:
        """The tokens by which the engine tells where an answer to a chat stands."""
        if self._marks is None:
            self._marks = turn_marks(self.tokenizer)
        return self._marks

    def token_text(self, token: int) -> str:
        """How one token reads by itself."""
        return self.tokenizer.token_text(token)


__all__ = ["Session"]
