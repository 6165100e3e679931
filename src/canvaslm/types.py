"""The vocabulary the layers share: what goes into the engine and what comes out. Plain data, no torch.

Imports nothing of canvaslm but the table of sampling parameters, which imports `errors` alone. Units:
entropies in nats, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from .diffusion.params import Params

NoteKind = Literal["thinking_budget", "empty_retried", "repetition", "hole_cut", "doubt_retried"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
# "outgrown": it began with too few places, and is begun again; "refused": the causal reader refused a token
# of it; "causal": it is no canvas, but a token.
CanvasStop = Literal["converged", "max_steps", "outgrown", "refused", "causal"]


@dataclass(frozen=True)
class Readout:
    """What a finished canvas of C places says, as plain data, for a `Constraint` to read."""

    tokens: tuple[int, ...]  # the argmax canvas
    given: tuple[bool, ...]  # places whose token was given
    top_tokens: tuple[tuple[int, ...], ...]  # per place the `Constraint.top` most probable tokens, best first
    top_logprobs: tuple[tuple[float, ...], ...]  # nats, of the last step's temperature-scaled distribution
    room: int  # tokens that may still be committed, here and on later canvases


@dataclass(frozen=True)
class Projection:
    """What is committed instead of a finished canvas: as many tokens as are right, fewer or
    more than it has places."""

    tokens: tuple[int, ...]
    places: tuple[int | None, ...]  # per token the place it comes from; None: the constraint put it in
    state: Any = None  # handed to the next canvas's `project`
    ended: bool = False  # whether the answer is complete


class Constraint(Protocol):
    """What an answer may say: turns each finished canvas into the tokens to commit.
    Frozen; its state is data.

    A canvas is denoised without it. Tokens beyond the room are cut off, as are those behind an EOS.
    A canvas that commits nothing must end the answer, else the request fails. `Params.settle_steps`
    is off with a constraint.
    """

    @property
    def shortest(self) -> int:
        """Tokens that a whole answer takes at least, its EOS included: a request with room for fewer is
        refused."""

    @property
    def top(self) -> int:
        """How many of each place's most probable tokens `project` wants to read."""

    def start(self) -> Any:
        """The state before the first canvas."""

    def project(self, state: Any, readout: Readout) -> Projection:
        """What to commit for one canvas. An exception ends the request, and no other."""


@runtime_checkable
class Masking(Protocol):
    """What a `Constraint` is besides if it can say which tokens may stand at a place: for `Params.mask`."""

    def masks(self, state: Any, given: Sequence[int | None], room: int) -> tuple[bytes | None, ...]:
        """Per place of the next canvas the tokens that may stand there, None: any.

        given: per place its token, where it is fixed. room: tokens that may still be committed. Bit t % 8 of
        byte t // 8 is that of token t. What is valid is allowed; what is allowed need not be valid.
        """


StructureKind = Literal["schema", "regex", "choice", "grammar", "avoid", "tools"]


@dataclass(frozen=True)
class Structure:
    """What a whole answer has to be, as a caller says it: what a `Constraint` is compiled from."""

    kind: StructureKind
    # A JSON schema, a pattern, a JSON list of texts, a grammar, texts not to say, or rules of calls.
    source: str
    param: str = field(default="", compare=False)  # what the caller calls it, for errors


DRAFT_NOISE = 0.8  # share of a draft that is noise: measured, docs/log.md
MAX_BIASES = 1024  # tokens with a bias in one request
MAX_WATCHED = 512  # tokens, of all places together, whose log-probabilities one request asks for


@dataclass(frozen=True)
class TokenRules:
    """Which tokens an answer favours, and which it may have. They hold in every step and at every place, but
    not where a token is given.
    """

    # (token, what is added to its logit after the division by temperature); -inf: the token never comes.
    biases: tuple[tuple[int, float], ...] = ()
    # None: all may come. Otherwise the first token is one of these, and what follows one of these or an EOS.
    allowed: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TurnMarks:
    """The tokens by which the engine tells where an answer stands, for `Params.thinking_budget` and
    `Params.retry_empty`."""

    open: int | None = None  # the markers around a thought
    close: int | None = None
    name: int = 0  # tokens between `open` and the thought itself: the channel's name
    blank: frozenset[int] = frozenset()  # tokens that say nothing: most control tokens, white space


@dataclass(frozen=True)
class Note:
    """What is to be known of how an answer came to be: `kind` for programs, `text` for people."""

    kind: NoteKind
    text: str


@dataclass(frozen=True)
class AdapterUse:
    """An adapter that an answer is written with (`model.adapters.Adapter`), and a factor of its scale."""

    adapter: Any
    scale: float = 1.0


@dataclass(frozen=True)
class Request:
    """One prompt for the engine, as token ids.

    `given` fixes places: {canvas * canvas length + place: token id}, with canvases counted from 0, of
    `Params.canvas_length` places or the model's. `top_logprobs` None wants no log-probabilities; k >= 0 those
    of the committed tokens and of the k best per place.

    `allowed` says what places may take, by the same numbers, whatever `rules` say of all places: bit t % 8
    of byte t // 8 is that of token t.
    `draft` is a guess of places, likewise: canvases begin with it but for a share `draft_noise` of the
    places, which are noise.

    Keys and values are shared only between requests of equal `identity`, as far as tokens and their
    `content_keys` are equal. With `shared`, just the first so many tokens are, all or none, and the prompt is
    cut there: what is computed is then the same to the last bit, whether they were remembered or not, if
    whoever else has this `identity` has the same beginning.

    `watched` names tokens of places of the answer, whose log-probabilities `Committed.watched` tells.
    """

    tokens: tuple[int, ...]
    params: Params = field(default_factory=Params)
    eos_token_ids: tuple[int, ...] = ()
    given: Mapping[int, int] = field(default_factory=dict)
    drafts: bool = False  # whether Draft events are wanted: they cost a copy of the canvas a step
    top_logprobs: int | None = None
    identity: str = ""  # of what else the context hangs on: an adapter, a template of positions
    # {index in `tokens`: key of what stands there}, where the token alone does not say it: an image's digest
    content_keys: Mapping[int, str] = field(default_factory=dict)
    constraint: Constraint | None = None
    rules: TokenRules = TokenRules()
    allowed: Mapping[int, bytes] = field(default_factory=dict)
    draft: Mapping[int, int] = field(default_factory=dict)
    draft_noise: float = DRAFT_NOISE
    marks: TurnMarks | None = None
    shared: int = 0
    watched: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    # Whether committed tokens are to be read by the causal reader; and how many tokens of each place of the
    # prompt it is to name, from token `prompt_first` on (None: it is not read).
    reads: bool = False
    prompt_logprobs: int | None = None
    prompt_first: int = 0
    prompt_only: bool = False  # nothing is to be written
    adapters: tuple[AdapterUse, ...] = ()


@dataclass(frozen=True)
class CanvasReport:
    """How one canvas went: denoise steps taken, why it ended, how many places it had, passes that the causal
    reader took over it alone, and how many places were computed in all of its steps together."""

    steps: int
    stop: CanvasStop
    mean_entropy: float
    places: int = 0
    reads: int = 0
    computed: int = 0


@dataclass(frozen=True)
class TokenRead:
    """What the causal reader says of a token, given all tokens before it: its log-probability in nats at
    temperature 1, its rank (1: the likeliest), the entropy of the place in nats, and the likeliest tokens.
    """

    logprob: float
    rank: int
    entropy: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Token counts. `completion_tokens` counts committed tokens, up to and including the first EOS."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one request, from submission on."""

    total: float = 0.0
    queued: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    first_draft: float | None = None
    first_commit: float | None = None


@dataclass(frozen=True)
class ToolCall:
    """A call the model wrote: `arguments` is the decoded object.

    `healed`: it was damaged (a brace or a marker was missing, a string had no quotes), yet it is clear.
    """

    name: str
    arguments: dict[str, Any]
    healed: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer, its log-probability in nats at the step that settled it,
    and the best at its place.

    `data` are the token's bytes; each of `top` is (token, bytes, log-probability), best first. `causal` and
    `rank` are what the causal reader says of it given all tokens before it: its log-probability in nats at
    temperature 1, and its rank (1: the likeliest); None where it was not asked (`doubt`, `verify`).
    """

    token: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()
    causal: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Draft:
    """The argmax canvas after one denoise step. Per-place tuples have the canvas's length."""

    request_id: int
    canvas: int  # 0-based number of the canvas
    step: int  # 1-based step just done
    steps_max: int
    temperature: float
    tokens: tuple[int, ...]
    entropy: tuple[float, ...]
    accepted: tuple[bool, ...]
    changed: tuple[bool, ...]  # argmax differs from the step before
    text: str = ""  # committed text plus this draft, filled in by the session
    given: tuple[bool, ...] = ()  # places whose token was given with the request; empty if none was


@dataclass(frozen=True)
class Settled:
    """The first places of a live canvas have been certain long enough to be sent: these
    tokens never change again.

    Only with `Params.settle_steps`. The canvas's `Committed` brings the rest of its tokens.
    """

    request_id: int
    canvas: int
    tokens: tuple[int, ...]
    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    token_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Committed:
    """A canvas is done: its tokens, cut after the first EOS, never change again; less
    those already `Settled`.

    The session fills in the deltas of text that these tokens add. Log-probabilities (nats) are those of the
    last step's temperature-scaled distribution, for all tokens of the canvas, and only if asked for.
    """

    request_id: int
    canvas: int
    tokens: tuple[int, ...]
    report: CanvasReport
    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[
        tuple[tuple[int, float], ...], ...
    ] = ()  # per token: (token id, log-probability), best first
    token_logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens of `text`, filled in by the session
    # {place of the answer: log-probabilities of its tokens in `Request.watched`}, of this canvas: exact, of
    # the last step, in nats, under the model's own distribution: at temperature 1, whatever is allowed there
    watched: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    reads: tuple[TokenRead, ...] = ()  # of each token, if asked for or with `Params.verify`


@dataclass(frozen=True)
class Finished:
    """Terminal event of a request that ran to its end (or was cancelled)."""

    request_id: int
    reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    canvases: tuple[CanvasReport, ...]
    # The session's parser may still hold back a partial marker when the last canvas commits: it ends up here.
    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    token_logprobs: tuple[TokenLogprob, ...] = ()
    notes: tuple[Note, ...] = ()
    # What the causal reader says of the prompt from `Request.prompt_first` on; None of the very first token.
    prompt_reads: tuple[TokenRead | None, ...] = ()


@dataclass(frozen=True)
class Failed:
    """Terminal event of a request that could not be served."""

    request_id: int
    error: Exception


Event = Draft | Settled | Committed | Finished | Failed


@dataclass(frozen=True)
class Message:
    """One chat turn. Roles: system (or developer), user, assistant, tool.

    >>> session.generate([canvaslm.Message("user", "capital of France")], seed=0).text
    'Paris'
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Ranked:
    """One of several answers to a prompt: the mean causal log-probability of its tokens in nats, and its
    seed."""

    mean_causal: float
    seed: int
    text: str


@dataclass(frozen=True)
class Reply:
    """A whole answer. `tokens` are the committed ids, thoughts and markers included.

    `logprobs` has the tokens of `text`, if they were asked for; `index` is the number of the prompt in
    `Session.generate_many`; `parsed` is what `text` says where a schema was asked for (an instance of the
    pydantic model, if that was the schema); `reads` is what the causal reader says of each of `tokens`, with
    `doubt` or `verify`; `ranking` has all answers of which this is the best, best first, with `best_of`.

    >>> reply = session.generate("capital of France", seed=0, logprobs=0)
    >>> reply.usage.completion_tokens == len(reply.tokens)
    True
    >>> "".join(token.token for token in reply.logprobs)
    'Paris'
    """

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    tokens: tuple[int, ...]
    canvases: tuple[CanvasReport, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    notes: tuple[Note, ...] = ()
    parsed: Any = None
    reads: tuple[TokenRead, ...] = ()
    ranking: tuple[Ranked, ...] = ()


@dataclass(frozen=True)
class Filled:
    """A text whose holes have been filled: what was given stands in `text` as it was, `holes` between.

    `canvases` are those that were kept, one for every group of holes that stood on one canvas (more for a
    hole that goes on over several). `usage` counts given text with the prompt, and the tokens of holes.
    `finish_reason` is "length" where a hole was cut at its limit; `notes` say which.

    >>> filled = session.fill("<hole>is", instruction="capital of France", seed=0)
    >>> filled.text == filled.holes[0] + "is"
    True
    """

    text: str
    holes: tuple[str, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    canvases: tuple[CanvasReport, ...]
    notes: tuple[Note, ...] = ()


Messages = str | Sequence[Message | Mapping[str, Any]]


__all__ = [
    "DRAFT_NOISE", "MAX_BIASES", "MAX_WATCHED", "CanvasReport", "CanvasStop", 
    "Committed", "Constraint", "Draft", "Event", "Failed", "Filled", "FinishReason",
    "Finished", "Masking", "Message", "Messages", "Note", "NoteKind", "Params", "Projection",
    "Ranked", "Readout", "Reply", "Request", "Settled", "Structure", "StructureKind", "Timings",
    "TokenLogprob", "TokenRead", "TokenRules", "ToolCall", "TurnMarks", "Usage",
]  # fmt: skip
