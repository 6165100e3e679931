"""What OpenAI's clients send to the chat and completions endpoints, and what they
get, as far as it is fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ....session.template import infill_template
from ....text.tool_choice import ToolChoice
from ....types import Structure
from ...fields import (
    WHOLE,
    AnswerSchema,
    Blocks,
    Count,
    Number,
    Open,
    Stop,
    Temperature,
    Tokens,
    Tools,
    Truncated,
    idle,
)
from ...limits import MAX_MESSAGES, MAX_PROMPTS, MAX_STRINGS
from ...problems import unsupported
from ...service import FillingRequest
from ...structured import format_wish

_IGNORED = "Accepted and ignored, with a warning unless it is neutral: a canvas is sampled as a whole."


class ChatStreamOptions(Open):
    """What a stream carries beside text."""

    include_usage: bool | None = None
    include_diffusion: bool | None = Field(
        None, description="Chunks with a `diffusion` object after every denoise step; their deltas are empty."
    )


class Sampled(Truncated):
    """Fields that both endpoints know."""

    model: str | None = Field(None, description="The model, or one of its adapters; without it the model.")
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = Field(
        None, description="Answers to each prompt: number i (from 0) has the seed plus i."
    )
    stop: Stop | None = Field(None, description="Stop strings; they apply to committed text only.")
    temperature: Temperature | None = None
    max_tokens: Count | None = None
    n_predict: Count | None = Field(
        None, description="llama-server's name of max_tokens, which wins over it."
    )
    stream: bool | None = None
    stream_options: ChatStreamOptions | None = None
    diffusing: bool | None = Field(
        None,
        description=(
            "With `stream`: each content delta is the whole text so far, drafts too; replace, not append."
        ),
    )
    doubt: bool | None = Field(
        None,
        description="Log-probabilities come with what the causal reader says of each token, given all before "
        "it: `causal_logprob` and `causal_rank` of `logprobs.content[]`, `causal_logprobs` and "
        "`causal_ranks` of completions.",
    )
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2, description=_IGNORED)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2, description=_IGNORED)] | None = None

    _limits: ClassVar[tuple[str, ...]] = ("max_tokens", "n_predict")  # the first that is given counts

    def params(self) -> dict[str, Any]:
        """Fields of `Params`."""
        given = {**self.sampling(), "temperature": self.temperature, "max_new_tokens": self.limit[1]}
        return {name: value for name, value in given.items() if value is not None}

    def ignored(self) -> list[dict[str, str]]:
        neutral = {"frequency_penalty": (None, 0.0), "presence_penalty": (None, 0.0)}
        given = [name for name, values in neutral.items() if getattr(self, name) not in values]
        return [*super().ignored(), *map(idle, given)]

    def refuse(self) -> None:
        """Raises Problem for what is understood and cannot be."""
        self.refuse_templates()
        if self.diffusing and not self.stream:
            raise unsupported("diffusing", 'diffusing needs "stream": true')

    @property
    def limit(self) -> tuple[str, int | None]:
        """The limit on tokens that counts, under the name that the client gave it."""
        given = [(name, value) for name in self._limits if (value := getattr(self, name)) is not None]
        return given[0] if given else ("max_tokens", None)

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_diffusion(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_diffusion)


class PromptRead(Sampled):
    """With log-probabilities of the prompt, under vLLM's name."""

    prompt_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = Field(
        None,
        description="For each token of the prompt a table {token id: {logprob, rank, decoded_token}} of it "
        "and of so many of the likeliest; the first token's is null. Not streamed.",
    )

    def refuse(self) -> None:
        super().refuse()
        if self.prompt_logprobs is not None and self.stream:
            raise unsupported("prompt_logprobs", 'prompt_logprobs are not streamed: leave out "stream"')

    @property
    def reads(self) -> int | None:
        """Of how many tokens of each place of the prompt the answer has the log-probabilities; None: the
        prompt is not read."""
        return self.prompt_logprobs

    @property
    def only_reads(self) -> bool:
        """Whether nothing is to be written."""
        return self.reads is not None and self.limit[1] == 0

    def params(self) -> dict[str, Any]:
        given = super().params()
        return {**given, "max_new_tokens": 1} if self.only_reads else given


class ChatMessage(Open):
    """One turn. `developer` is `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Blocks | None = Field(None, description="Text, or parts of type text.")
    name: str | None = None
    tool_calls: Blocks | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatRequest(PromptRead):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage] = Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Count | None = Field(
        None, description="The newer name of max_tokens; wins over it."
    )
    _limits: ClassVar[tuple[str, ...]] = ("max_completion_tokens", "max_tokens", "n_predict")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = Field(
        None,
        description="none, auto, required, or one tool. What has to be called is called for sure, with "
        "arguments of its schema; in auto they are so for tools that say `strict`.",
    )
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most.")
    response_format: dict[str, Any] | None = Field(
        None,
        description='{"type": "json_object"}, or {"type": "json_schema", "json_schema": {"schema": ...}}: '
        "the answer is that for sure, strict or not.",
    )
    prediction: dict[str, Any] | None = Field(
        None,
        description='{"type": "content", "content": ...}: a guess of the answer. Canvases begin with a fifth '
        "of it; the rest is noise.",
    )
    modalities: Annotated[list[str], Field(fail_fast=True, max_length=MAX_STRINGS)] | None = None

    @property
    def names(self) -> dict[str, str]:
        """Our names -> the client's."""
        return {"max_new_tokens": self.limit[0]}

    def refuse(self) -> None:
        super().refuse()
        if set(self.modalities or ["text"]) != {"text"}:
            raise unsupported("modalities", "only text is written here")
        if self.top_logprobs is not None and not self.logprobs:
            raise unsupported("top_logprobs", 'top_logprobs needs "logprobs": true')

    def calls(self) -> tuple[Sequence[Mapping[str, Any]] | None, ToolChoice | None, bool | None]:
        return self.tools, self.tool_choice, self.parallel_tool_calls

    def wishes(self) -> Iterator[Structure | None]:
        yield from super().wishes()
        yield format_wish(self.response_format, "response_format")

    def draft(self) -> str:
        """The text of `prediction`. Raises Problem for what is none."""
        if self.prediction is None:
            return ""
        content = self.prediction.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
        if self.prediction.get("type") != "content" or not all(isinstance(text, str) for text in texts):
            raise unsupported("prediction", 'prediction should be {"type": "content", "content": a text}')
        return "".join(map(str, texts))

    def turns(self) -> list[dict[str, Any]]:
        """The messages as plain data."""
        return [message.model_dump(exclude_none=True) for message in self.messages]


class CompletionRequest(PromptRead):
    """POST /v1/completions"""

    prompt: (
        str
        | Annotated[Tokens, Field(min_length=1)]
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[
            list[Annotated[Tokens, Field(min_length=1)]],
            Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS),
        ]
    ) = Field(description="Text, token ids, or a list of either. Not put through the chat template.")
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    echo: bool | None = Field(
        None,
        description="Put the prompt before the answer, in `logprobs` too; the first token of all has none. "
        "With logprobs it is not streamed.",
    )
    suffix: str | None = Field(
        None, description="Text behind the answer: what belongs between the prompt, a text, and this."
    )
    best_of: Annotated[int, Field(ge=1, le=128), WHOLE] | None = Field(
        None,
        description="Of so many answers the n are returned of which the model's causal reader thinks best. "
        "Not streamed.",
    )

    @property
    def names(self) -> dict[str, str]:
        """Our names -> the client's."""
        return {"max_new_tokens": self.limit[0], "messages": "prompt", "template": "prompt"}

    def refuse(self) -> None:
        super().refuse()
        if self.echoes_logprobs and self.stream:
            raise unsupported("echo", 'echo with logprobs is not streamed: leave out "stream"')
        if self.suffix and self.reads is not None:
            name = "echo" if self.echoes_logprobs else "prompt_logprobs"
            raise unsupported(name, f"{name}: what stands around a suffix has no log-probabilities")
        if self.suffix and not isinstance(self.prompt, str):
            raise unsupported("suffix", "suffix goes with one prompt that is a text")
        if self.candidates < (self.n or 1):
            raise unsupported("best_of", f"best_of = {self.best_of} is less than n = {self.n}: raise it")
        if self.chooses and (self.stream or self.suffix):
            name = "stream" if self.stream else "suffix"
            raise unsupported("best_of", f"best_of chooses among whole answers: leave out {name}")

    @property
    def candidates(self) -> int:
        """Answers to write for each prompt."""
        return self.best_of or self.n or 1

    @property
    def chooses(self) -> bool:
        """Whether fewer answers are returned than are written."""
        return self.candidates > (self.n or 1)

    @property
    def best(self) -> int | None:
        """How many tokens of each place are named; None for no log-probabilities at all."""
        return 0 if self.logprobs is None and self.doubt else self.logprobs

    @property
    def echoes_logprobs(self) -> bool:
        """Whether the prompt's tokens are in `logprobs`."""
        return bool(self.echo) and self.best is not None

    @property
    def reads(self) -> int | None:
        asked = [self.prompt_logprobs, self.best if self.echo else None]
        return max((count for count in asked if count is not None), default=None)

    @property
    def only_reads(self) -> bool:
        return self.limit[1] == 0

    def params(self) -> dict[str, Any]:
        """A single token behind a prompt that is read comes from who reads it: clients that want the
        prompt's log-probabilities ask for one token because they must, and denoising a canvas for it takes
        long."""
        given = super().params()
        if self.echoes_logprobs and self.limit[1] == 1 and self.structure() is None:
            given.setdefault("decoding", "causal")
        return given

    def filling(self) -> FillingRequest | None:
        """The text with a hole, if there is one."""
        if not self.suffix or not isinstance(self.prompt, str):
            return None
        return FillingRequest(infill_template(self.prompt, self.suffix))

    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        return [prompt] if isinstance(prompt[0], int) else list(prompt)


class CompletionUsage(AnswerSchema):
    """Tokens counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(AnswerSchema):
    """An answer that is not streamed. Of `n` choices or several prompts, all are in `choices`."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    system_fingerprint: str
    seed: int = Field(description="The first choice's; the same request with it gives the same answer.")
    choices: list[dict[str, Any]]
    usage: CompletionUsage
    timings: dict[str, Any]
    warnings: list[dict[str, str]] | None = None


__all__ = [
    "ChatMessage",
    "ChatRequest",
    "ChatStreamOptions",
    "Completion",
    "CompletionRequest",
    "CompletionUsage",
    "PromptRead",
    "Sampled",
]
