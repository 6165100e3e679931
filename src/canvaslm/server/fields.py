"""Pieces of request schemas that dialects share: types of numbers, and the diffusion
parameters as extra fields.

Schemas are strict (a number in quotes is no number) and open: a field that nobody knows is ignored, and named
in the answer's `warnings`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    create_model,
    model_validator,
)

from ..diffusion.params import PARAMETERS, PRESETS, Parameter, old_names
from ..errors import UsageError
from ..text.stop import MAX_STOPS
from ..text.token_rules import NEVER_AT, rules_of
from ..types import MAX_BIASES, TokenRules
from .limits import MAX_BLOCKS, MAX_STRINGS, MAX_TOKENS, MAX_TOOLS
from .problems import unsupported
from .structured import Structured

_SHOWN = 16  # unknown fields named in the warnings


def limits(name: str) -> Any:
    """The range and the description of a sampling parameter that is a number."""
    about = PARAMETERS[name]
    return Field(ge=about.least, le=about.high, description=about.explained())


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 5.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Int = Annotated[int, WHOLE]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, limits("max_new_tokens"), WHOLE]
Budget = Annotated[int, limits("thinking_budget"), WHOLE]
Temperature = Annotated[Number, limits("temperature")]

# Lists stop at the first wrong item: an error is worded for each, and a body may hold millions of them.
Stop = str | Annotated[list[str], Field(fail_fast=True, max_length=MAX_STOPS)]
Tools = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_TOOLS)]
Blocks = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_BLOCKS)]
Tokens = Annotated[list[Annotated[int, Field(ge=0), WHOLE]], Field(fail_fast=True, max_length=MAX_TOKENS)]
if TYPE_CHECKING:
    Sampler: TypeAlias = str
    Preset: TypeAlias = str
else:
    Sampler = Literal[PARAMETERS["sampler"].choices]
    Preset = Literal[tuple(PRESETS)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Tokens of thought that a level of effort stands for. The levels above have no limit.
BUDGETS = {"low": 512, "medium": 2048}

# Clients send these with every request, and nothing they wish for with them changes the answer here.
HARMLESS = frozenset(
    {
        "model", "user", "metadata", "store", "service_tier", "safety_identifier",
        "prompt_cache_key", "prompt_cache_retention", "verbosity", "cache_prompt", "include", "truncation",
    }
)  # fmt: skip


class Open(BaseModel):
    """A request body that may hold more than is known here."""

    model_config = ConfigDict(extra="allow", strict=True)

    def ignored(self) -> list[dict[str, str]]:
        """A warning for each field that was ignored, or has another name now."""
        extra = self.model_extra or {}
        told = [
            {"param": name[:64], "message": f"unknown field {name[:64]!r} was ignored"}
            for name in islice((name for name in extra if name not in HARMLESS), _SHOWN)
        ]
        more = len(extra) - sum(name in extra for name in HARMLESS) - len(told)
        if more:
            told.append({"param": "", "message": f"{more} more unknown fields were ignored"})
        return told


class LoraScale(Open):
    """An adapter by its number in GET /lora-adapters, and with which factor of its scale it is used."""

    id: Annotated[int, Field(ge=0), WHOLE]
    scale: Number


class AnswerSchema(BaseModel):
    """A description of an answer, which may hold more."""

    model_config = ConfigDict(extra="allow")


# Parameters whose field has a name or a meaning of its own in each dialect.
_OF_THE_DIALECTS = ("max_new_tokens", "temperature", "top_k")
_SAMPLING = tuple(name for name in PARAMETERS if name not in _OF_THE_DIALECTS)


def field_of(about: Parameter) -> tuple[Any, Any]:
    """The type and the default (None: not set) of the field for a sampling parameter."""
    if about.choices:
        kind: Any = Annotated[Literal[about.choices], BeforeValidator(about.current)]
    elif about.kind is bool:
        kind = bool
    elif about.kind is int:
        kind = Annotated[int, Field(ge=about.least, le=about.high), WHOLE]
    else:
        kind = Annotated[Number, Field(ge=about.low, le=about.high)]
    return kind | None, Field(None, description=about.explained())


if TYPE_CHECKING:
    _Sampling = Open
else:
    _Sampling = create_model(
        "_Sampling", __base__=Open, **{name: field_of(PARAMETERS[name]) for name in _SAMPLING}
    )


class Diffusion(_Sampling, Structured):
    """Parameters of the sampler, named as in `generation_config.json`."""

    preset: Preset | None = Field(None, description="A named trade-off; single parameters win over it.")
    thinking: bool | dict[str, Any] | None = Field(
        None, description='true, or {"type": "enabled"}; {"budget_tokens": N} is a thinking_budget.'
    )
    reasoning_effort: Effort | None = Field(
        None,
        description='All but "none" and "minimal" switch thinking on; a thinking_budget goes with '
        + " and ".join(f'"{level}" ({budget})' for level, budget in BUDGETS.items())
        + ".",
    )
    thinking_token_budget: Budget | None = Field(None, description="vLLM's name of thinking_budget.")
    thinking_budget_tokens: Budget | None = Field(None, description="llama-server's name of thinking_budget.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Only `enable_thinking` has an effect."
    )
    logit_bias: Annotated[dict[str, Number], Field(max_length=MAX_BIASES)] | None = Field(
        None, description="{token id: added to its logit, -100 to 100}; -100: the token never comes."
    )
    allowed_token_ids: Tokens | None = Field(None, description="The only tokens that may come.")
    min_tokens: Annotated[int, limits("min_new_tokens"), WHOLE] | None = Field(
        None, description="vLLM's name of min_new_tokens, which wins over it."
    )
    lora: Annotated[list[LoraScale], Field(fail_fast=True, max_length=MAX_STRINGS)] | None = Field(
        None, description="Adapters by number; those not named are not used. See GET /lora-adapters."
    )
    chat_template: Any = Field(None, description="Refused: templates come with the model alone.")

    _old_names: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _note_old_names(cls, data: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        made = read(data)
        if isinstance(data, dict):
            made._old_names = old_names(data)
        return made

    def ignored(self) -> list[dict[str, str]]:
        told = [{"param": name, "message": message} for name, message in self._old_names.items()]
        given = self.sampling()
        if given.get("top_p", 1.0) != 1.0 and not self.is_causal:
            told.append(idle("top_p"))
        return [*super().ignored(), *told]

    @property
    def is_causal(self) -> bool:
        """Whether the client wants one token written after the other."""
        return bool(self.sampling().get("decoding") == "causal")

    def sampling(self) -> dict[str, Any]:
        """Fields of `Params` that the client set."""
        given = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        if self.min_tokens is not None:
            given.setdefault("min_new_tokens", self.min_tokens)
        budget = self.budget()
        return given if budget is None else {**given, "thinking_budget": budget}

    def loras(self) -> list[tuple[int, float]] | None:
        """Numbers and scales of adapters; None: nothing was said of them."""
        return None if self.lora is None else [(one.id, one.scale) for one in self.lora]

    def effort(self) -> str | None:
        """How much the client wants thought."""
        return self.reasoning_effort

    def budget(self) -> int | None:
        """Tokens that may be thought, -1 for no limit: as many as the client says, or what its level stands
        for. None: nothing was said. Raises Problem for a budget that is no number."""
        for name in ("thinking_budget", "thinking_token_budget", "thinking_budget_tokens"):
            told: int | None = getattr(self, name)
            if told is not None:
                return told
        if isinstance(self.thinking, dict) and self.thinking.get("budget_tokens") is not None:
            return _budget(self.thinking["budget_tokens"])
        return BUDGETS.get(self.effort() or "")

    def rules(self) -> TokenRules:
        """The tokens that the client favours and forbids. Raises Problem for keys that are no token ids."""
        biases = self.logit_bias or {}
        for token, value in biases.items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise unsupported("logit_bias", f"logit_bias: {token[:64]!r} is no token id")
            if not NEVER_AT <= value <= -NEVER_AT:
                raise unsupported(
                    "logit_bias", f"logit_bias of token {token} is {value:g}: it must be in -100 to 100"
                )
        return rules_of({int(token): value for token, value in biases.items()}, self.allowed_token_ids)

    def thinks(self) -> bool:
        """Whether the model is to think first: the most explicit of three fields decides."""
        asked = (self.chat_template_kwargs or {}).get("enable_thinking")
        if isinstance(asked, bool):
            return asked
        if isinstance(self.thinking, dict):
            return self.thinking.get("type") in ("enabled", "adaptive")
        if self.thinking is not None:
            return self.thinking
        return self.reasoning_effort not in (None, "none", "minimal")

    def refuse_templates(self) -> None:
        """Raises Problem if the request brings a template."""
        if self.chat_template is not None:
            raise unsupported(
                "chat_template", "chat templates in requests are not run: the model's own is used"
            )


def _budget(tokens: Any) -> int:
    """Anthropic's `thinking.budget_tokens`."""
    tokens = _whole(tokens)
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise unsupported("thinking", "thinking.budget_tokens: must be a whole number")
    try:
        PARAMETERS["thinking_budget"].check(tokens)
    except UsageError as error:
        raise unsupported("thinking", f"thinking.budget_tokens: {error}") from None
    return tokens


class Truncated(Diffusion):
    """With `top_k`, in the dialects whose own clients do not know the field: who sends it means it.

    Anthropic's and Ollama's clients send one for models that write token after token, Ollama's 40 by default.
    There see `TokenByToken`.
    """

    top_k: Annotated[int, Field(ge=-1, le=PARAMETERS["top_k"].high), WHOLE] | None = Field(
        None, description=f"{PARAMETERS['top_k'].explained()} So does -1."
    )

    def sampling(self) -> dict[str, Any]:
        given = super().sampling()
        return given if self.top_k is None else {**given, "top_k": max(self.top_k, 0)}


class TokenByToken(Diffusion):
    """With the `top_k` that Anthropic's and Ollama's clients send for models that write one token after
    another: it counts where the answer is written so, and is ignored, with a warning, where it is not."""

    top_k: Int | None = Field(None, description="With decoding causal alone. 0 and less: all tokens.")

    def sampling(self) -> dict[str, Any]:
        given = super().sampling()
        if self.top_k is not None and given.get("decoding") == "causal":
            given["top_k"] = min(max(self.top_k, 0), int(PARAMETERS["top_k"].high or 0))
        return given

    def ignored(self) -> list[dict[str, str]]:
        told = [idle("top_k")] if self.top_k is not None and not self.is_causal else []
        return [*super().ignored(), *told]


def idle(name: str) -> dict[str, str]:
    """The warning about a sampling field that a dialect's clients send for models of another kind."""
    told = f"{name} has no meaning for a canvas and was ignored"
    if name == "top_p":
        told += ': it counts with "decoding": "causal"'
    if name == "top_k":
        told = (
            "top_k is sent for models that write one token after another and was ignored: "
            "set top_k_start and top_k_end to truncate what a canvas is sampled from"
        )
    return {"param": name, "message": told}


__all__ = [
    "BUDGETS",
    "WHOLE",
    "AnswerSchema",
    "Blocks",
    "Count",
    "Diffusion",
    "Effort",
    "Int",
    "LoraScale",
    "Number",
    "Open",
    "Preset",
    "Sampler",
    "Stop",
    "Temperature",
    "TokenByToken",
    "Tokens",
    "Tools",
    "Truncated",
    "field_of",
    "idle",
    "limits",
]
