"""Pieces of request schemas that dialects share: types of numbers, and the diffusion parameters as extra fields.

Schemas are strict (a number in quotes is no number) and open: a field that nobody knows is ignored, and named in the
answer's `warnings`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..diffusion import PARAMETERS
from .problems import unsupported

_SHOWN = 16  # unknown fields named in the warnings


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 5.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Int = Annotated[int, WHOLE]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[
    int, Field(ge=-1, le=2**63 - 1, description="-1, or none: a random one, which the answer names."), WHOLE
]
Count = Annotated[int, Field(ge=1, le=2**24), WHOLE]
Stop = str | list[str]
Tools = list[dict[str, Any]]
Sampler = Literal["entropy_bound", "probability_threshold", "ancestral"]
Preset = Literal["fast", "balanced", "quality"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Clients send these with every request, and nothing they wish for with them changes the answer here.
HARMLESS = frozenset(
    {
        "model", "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
        "prompt_cache_key", "prompt_cache_retention", "verbosity", "cache_prompt", "include", "truncation",
    }
)  # fmt: skip


class Open(BaseModel):
    """A request body that may hold more than is known here."""

    model_config = ConfigDict(extra="allow", strict=True)

    def ignored(self) -> list[dict[str, str]]:
        """A warning for each field that was ignored."""
        extra = [name for name in self.model_extra or {} if name not in HARMLESS]
        told = [
            {"param": name[:64], "message": f"unknown field {name[:64]!r} was ignored"}
            for name in extra[:_SHOWN]
        ]
        if len(extra) > _SHOWN:
            told.append({"param": "", "message": f"{len(extra) - _SHOWN} more unknown fields were ignored"})
        return told


class AnswerSchema(BaseModel):
    """A description of an answer, which may hold more."""

    model_config = ConfigDict(extra="allow")


class Diffusion(Open):
    """Parameters of the sampler, named as in `generation_config.json`."""

    seed: Seed | None = None
    preset: Preset | None = Field(None, description="A named trade-off; single parameters win over it.")
    max_denoising_steps: Annotated[int, Field(ge=1, le=10_000), WHOLE] | None = Field(
        None, description="Denoise steps that a canvas may take."
    )
    sampler: Annotated[Sampler, BeforeValidator(PARAMETERS["sampler"].current)] | None = Field(
        None, description="Which sampled tokens a step accepts."
    )
    entropy_bound: Annotated[Number, Field(ge=0, le=1e6)] | None = Field(
        None, description="Nats accepted a step (sampler entropy_bound)."
    )
    accept_threshold: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        None, description="Probability from which a token is accepted (sampler probability_threshold)."
    )
    t_min: Annotated[Number, Field(ge=1e-3, le=100)] | None = Field(
        None, description="A canvas's last temperature."
    )
    t_max: Annotated[Number, Field(ge=1e-3, le=100)] | None = Field(
        None, description="A canvas's first temperature."
    )
    top_k_start: Annotated[int, Field(ge=0, le=10**6), WHOLE] | None = Field(
        None,
        description="The top-k of a canvas's first step, falling to top_k_end; the two win over a top_k. 0: off.",
    )
    top_k_end: Annotated[int, Field(ge=0, le=10**6), WHOLE] | None = Field(
        None, description="The top-k of a canvas's last step."
    )
    top_k_tail_correction: bool | None = Field(
        None, description="With a top-k: judge how certain a place is by all tokens, not by those kept."
    )
    stability_threshold: Annotated[int, Field(ge=0, le=1000), WHOLE] | None = Field(
        None, description="Steps that a draft must stay the same before its canvas may end early."
    )
    confidence_threshold: Annotated[Number, Field(ge=0, le=1e6)] | None = Field(
        None, description="Mean entropy in nats below which a canvas may end early."
    )
    eos_aware_stopping: bool | None = Field(None, description="Look no further than the draft's first EOS.")
    settle_steps: Annotated[int, Field(ge=0, le=1000), WHOLE] | None = Field(
        None, description="Send, and freeze, what has been certain for so many steps; 0: whole canvases only."
    )
    settle_entropy: Annotated[Number, Field(ge=0, le=1e6)] | None = Field(
        None, description="Nats below which a place counts as certain for settle_steps."
    )
    thinking: bool | dict[str, Any] | None = Field(None, description='true, or {"type": "enabled"}.')
    reasoning_effort: Effort | None = Field(
        None, description='All but "none" and "minimal" switch thinking on.'
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Only `enable_thinking` has an effect."
    )
    chat_template: Any = Field(None, description="Refused: templates come with the model alone.")

    def sampling(self) -> dict[str, Any]:
        """Fields of `Params` that the client set."""
        return {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}

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


class Truncated(Diffusion):
    """With `top_k`, in the dialects whose own clients do not know the field: who sends it means it.

    Anthropic's and Ollama's clients send one for models that write token after token, Ollama's 40 by default. There it is
    ignored, with a warning that names `top_k_start` and `top_k_end`.
    """

    top_k: Annotated[int, Field(ge=-1, le=10**6), WHOLE] | None = Field(
        None,
        description="Likeliest tokens that a place is sampled from and conditioned on; 0 or -1: all, as by default.",
    )

    def sampling(self) -> dict[str, Any]:
        given = super().sampling()
        return given if self.top_k is None else {**given, "top_k": max(self.top_k, 0)}


def idle(name: str) -> dict[str, str]:
    """The warning about a sampling field that a dialect's clients send for models of another kind."""
    told = f"{name} has no meaning for a canvas and was ignored"
    if name == "top_k":
        told = (
            "top_k is sent for models that write one token after another and was ignored: "
            "set top_k_start and top_k_end to truncate what a canvas is sampled from"
        )
    return {"param": name, "message": told}


_SAMPLING = (
    *("seed", "max_denoising_steps", "sampler", "entropy_bound", "accept_threshold", "t_min", "t_max"),
    *("top_k_start", "top_k_end", "top_k_tail_correction"),
    *("stability_threshold", "confidence_threshold", "eos_aware_stopping", "settle_steps", "settle_entropy"),
)

__all__ = [
    "WHOLE",
    "AnswerSchema",
    "Count",
    "Diffusion",
    "Effort",
    "Int",
    "Number",
    "Open",
    "Preset",
    "Sampler",
    "Seed",
    "Stop",
    "Tools",
    "Truncated",
    "idle",
]
