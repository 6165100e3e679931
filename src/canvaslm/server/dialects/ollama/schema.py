"""What Ollama's clients send to /api/generate and /api/chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ....session.template import infill_template
from ....text.stop import MAX_LENGTH, MAX_STOPS
from ....text.tool_choice import calls_of, must_call
from ....types import Structure
from ...fields import (
    BUDGETS,
    WHOLE,
    AnswerSchema,
    Blocks,
    Int,
    Number,
    Open,
    Temperature,
    TokenByToken,
    Tools,
    idle,
)
from ...limits import MAX_BLOCKS, MAX_MESSAGES, MAX_TOKENS
from ...problems import Problem, unsupported
from ...service import FillingRequest
from ...structured import schema_wish

Images = Annotated[list[Any], Field(max_length=MAX_BLOCKS)]
_StopString = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]
# How Ollama loads a model, and which context it gives it: settings of the server here.
_OF_THE_SERVER = frozenset(
    {
        "numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all",
        "vocab_only",
        "use_mmap", "use_mlock", "embedding_only", "num_thread", "num_keep",
    }
)  # fmt: skip
# Samplers that pick one token after another.
_MEANINGLESS = frozenset(
    {
        "min_p", "tfs_z", "typical_p", "repeat_last_n", "repeat_penalty",
        "presence_penalty",
        "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline",
    }
)  # fmt: skip


class OllamaOptions(TokenByToken):
    """Sampling options. Those that choose one token after another are ignored, with a warning in the answer;
    but `top_k` and `top_p` count with `decoding` causal."""

    seed: (
        Annotated[int, Field(ge=-(2**63), le=2**63 - 1, description="Negative: a random one."), WHOLE] | None
    ) = None
    temperature: Temperature | None = None
    num_predict: (
        Annotated[Int, Field(ge=-(2**31), le=2**31, description="0 and less: no limit."), WHOLE] | None
    ) = None
    num_ctx: Annotated[Number, Field(description="Accepted and ignored: the server's own holds.")] | None = (
        None
    )
    stop: _StopString | Annotated[list[_StopString], Field(fail_fast=True, max_length=MAX_STOPS)] | None = (
        None
    )

    def params(self, max_context: int) -> dict[str, Any]:
        """Fields of `Params`; without a limit, an answer may fill the context."""
        given = {**self.sampling(), "temperature": self.temperature}
        if (self.seed or 0) < 0:
            del given["seed"]
        if self.num_predict is not None:
            given["max_new_tokens"] = (
                min(self.num_predict, max_context) if self.num_predict > 0 else max_context
            )
        return {name: value for name, value in given.items() if value is not None}

    def ignored(self) -> list[dict[str, str]]:
        told = [t for t in super().ignored() if t["param"] not in _OF_THE_SERVER]
        return [idle(t["param"]) if t["param"] in _MEANINGLESS else t for t in told]


class OllamaBody(Open):
    """What /api/generate and /api/chat share."""

    model: str | None = Field(None, description="The model, or one of its adapters; without it the model.")
    stream: bool | None = Field(
        None, description="Lines of JSON, which is also the default; false: one object."
    )
    think: bool | Literal["low", "medium", "high", "max"] | None = Field(
        None, description="A level bounds the thought: see reasoning_effort."
    )
    options: OllamaOptions | None = None
    keep_alive: Number | str | None = Field(None, description="Accepted: the model stays loaded anyway.")
    format: str | dict[str, Any] | None = Field(
        None, description='"json", or a JSON schema: the answer is that for sure.'
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20), WHOLE] | None = None
    template: str | None = Field(None, description="Refused: templates come with the model alone.")

    def refuse(self) -> None:
        """Raises Problem for what is understood and cannot be."""
        if self.template:
            raise unsupported("template", "templates in requests are not run: the model's own is used")
        self.given.refuse_templates()

    def structure(self) -> Structure | None:
        """What the answer has to be. Raises Problem for two wishes at once."""
        wish = self._format()
        options = self.given.structure()
        if wish is not None and options is not None:
            raise Problem(
                400, f"{options.param} and format cannot both hold: send one of them", param="format"
            )
        return wish or options

    def _format(self) -> Structure | None:
        if not self.format:
            return None
        return schema_wish({"type": "object"} if self.format == "json" else self.format, "format")

    @property
    def given(self) -> OllamaOptions:
        """The options, all unset without any."""
        return self.options or OllamaOptions.model_validate({})

    @property
    def names(self) -> dict[str, str]:
        """Our names -> the client's."""
        return {"max_new_tokens": "num_predict", "messages": "prompt", "template": "prompt"}

    @property
    def unloads(self) -> bool:
        """Whether an empty request asks for the model to be dropped from memory."""
        alive = self.keep_alive
        return alive == 0 or (isinstance(alive, str) and alive.strip().rstrip("smh") in ("0", "0.0"))

    @property
    def best(self) -> int | None:
        """Log-probabilities wanted: None, or how many beside the token's own."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def thinks(self) -> bool:
        return bool(self.think) or (self.think is None and self.given.thinks())

    def params(self, max_context: int) -> dict[str, Any]:
        """Fields of `Params`."""
        level = BUDGETS.get(self.think) if isinstance(self.think, str) else None
        given = self.given.params(max_context)
        return given if level is None else {"thinking_budget": level, **given}

    def told(self) -> list[dict[str, str]]:
        """A warning for each field that was ignored."""
        return [*self.ignored(), *self.given.ignored()]


class GenerateRequest(OllamaBody):
    """POST /api/generate"""

    prompt: str | None = Field(None, description="An empty one only loads the model.")
    system: str | None = None
    raw: bool | None = Field(None, description="The prompt is not put through the chat template.")
    suffix: str | None = Field(
        None, description="Text behind the answer: what belongs between the prompt and this. Not with images."
    )
    images: Images | None = Field(None, description="Refused unless empty.")
    context: Annotated[list[Any], Field(max_length=MAX_TOKENS)] | None = Field(
        None, description="Refused unless empty: use /api/chat."
    )

    def refuse(self) -> None:
        super().refuse()
        if self.images:
            raise unsupported("images", "images are not supported yet: send text only")
        if self.context:
            raise unsupported("context", "context is not supported: send the conversation to /api/chat")
        if self.raw and self.system:
            raise unsupported("raw", "a raw prompt has no system message: write it into the prompt")

    def filling(self) -> FillingRequest | None:
        """The text with a hole, if there is one."""
        if not self.suffix:
            return None
        return FillingRequest(infill_template(self.prompt or "", self.suffix), system=self.system)

    def turns(self) -> list[dict[str, Any]]:
        """The prompt as chat messages."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt or ""}]


class OllamaMessage(Open):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Images | None = Field(None, description="Refused unless empty.")
    tool_calls: Blocks | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def turn(self) -> dict[str, Any]:
        """As chat templates have it. Raises Problem for images."""
        if self.images:
            raise unsupported("messages", "images are not supported yet: send text only")
        made = {
            "role": self.role,
            "content": self.content or "",
            "reasoning_content": self.thinking,
            "tool_calls": self.tool_calls,
            "name": self.tool_name,
            "tool_call_id": self.tool_call_id,
        }
        return {name: value for name, value in made.items() if value is not None}


class OllamaChatRequest(OllamaBody):
    """POST /api/chat"""

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True, max_length=MAX_MESSAGES)] | None = Field(
        None, description="None of them only loads the model."
    )
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = Field(
        None, description="As OpenAI's; Ollama has none."
    )
    parallel_tool_calls: bool | None = Field(None, description="As OpenAI's: false is one call at most.")

    @property
    def names(self) -> dict[str, str]:
        return {"max_new_tokens": "num_predict"}

    def structure(self) -> Structure | None:
        calls, wish = calls_of(self.tools, self.tool_choice, self.parallel_tool_calls), super().structure()
        if calls is not None and wish is not None and must_call(calls):
            raise Problem(
                400, f"{wish.param} and tool_choice cannot both hold: send one", param="tool_choice"
            )
        return wish or calls

    def turns(self) -> list[dict[str, Any]]:
        """The messages as plain data."""
        return [message.turn() for message in self.messages or ()]


class Line(AnswerSchema):
    """An answer, or one line of it: what it adds to the text, and on the last line (`done`) the figures.

    Durations are in nanoseconds; `eval_duration` is wall time without the wait for a row.
    """

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    warnings: list[dict[str, str]] | None = None


class GenerateLine(Line):
    """An answer of /api/generate."""

    response: str
    thinking: str | None = None


class ChatLine(Line):
    """An answer of /api/chat."""

    message: dict[str, Any]


class OllamaError(BaseModel):
    """Every error, also as the last line of a stream."""

    error: str


__all__ = [
    "ChatLine",
    "GenerateLine",
    "GenerateRequest",
    "Line",
    "OllamaBody",
    "OllamaChatRequest",
    "OllamaError",
    "OllamaMessage",
    "OllamaOptions",
]
