"""The options that callers give by name: of `load`, and of a session's ways to ask. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from .diffusion.options import SamplingOptions

# An adapter by its name, or several, each by its name or with a factor of its scale.
AdapterOption = str | Sequence[str | tuple[str, float]] | None


class GenerateOptions(SamplingOptions, total=False):
    """Options of `Session.generate_many`: what is said beside the messages, and the fields of `Params`."""

    system: str | None  # a system message put before the others
    thinking: bool  # the model thinks first
    tools: list[dict[str, Any]] | None  # OpenAI-style definitions
    tool_choice: str | Mapping[str, Any] | None  # auto, none, required, or the definition of the one to call
    parallel_tool_calls: bool | None  # False: one call at most
    raw: bool  # the prompt is not put through the chat template
    preset: str | None
    stop: str | Sequence[str] | None  # texts before which the answer ends
    logprobs: int | None  # log-probabilities of the tokens, and of so many others at each place
    doubt: bool  # what the causal reader thinks of each token, beside its log-probability
    given: Mapping[int, int] | None  # {place of the answer: token id}
    logit_bias: Mapping[int, float] | None  # {token id: what is added to its logit, -100 or less: never}
    allowed_token_ids: Sequence[int] | None  # the only tokens that may come
    draft: str | None  # a guess of the answer, which canvases begin with but for noise
    draft_noise: float | None  # share of its places that are noise
    schema: Any  # a JSON schema, a pydantic model or a TypedDict: the answer is a JSON text of it
    regex: str | None  # the whole answer matches it
    choice: Sequence[str] | None  # the answer is one of these texts
    grammar: str | None  # the answer is of this grammar, in GBNF or Lark
    bad_words: Sequence[str] | None  # texts that the answer does not have
    adapter: AdapterOption


class AnswerOptions(GenerateOptions, total=False):
    """Options of `Session.generate`."""

    best_of: int | None  # the best of so many answers, as the causal reader thinks
    retry_doubtful: bool  # doubtful tokens are written once more, and kept if the causal reader likes them


class StreamOptions(GenerateOptions, total=False):
    """Options of `Session.stream`."""

    drafts: bool  # Draft events, too


class FillOptions(SamplingOptions, total=False):
    """Options of `Session.fill`, `infill` and `edit`: `max_new_tokens` is what each hole may have."""

    instruction: str | None  # what the text shall say; the user's turn
    system: str | None
    thinking: bool
    preset: str | None
    stop: str | Sequence[str] | None  # texts before which a hole's text ends
    draft: str | Sequence[str | None] | None  # a guess of each hole
    draft_noise: float  # share of a draft's places that are noise
    adapter: AdapterOption


class ScoreOptions(TypedDict, total=False):
    """Options of `Session.score` and `score_many`."""

    system: str | None
    thinking: bool
    raw: bool  # the prompt is not put through the chat template
    adapter: AdapterOption


class DecideOptions(TypedDict, total=False):
    """Options of `Session.decide`."""

    samples: int  # draws of noise that are averaged, 1 to 16
    steps: int  # denoise steps of each canvas, 1 to 8
    permute: bool | int  # orders of the options that are averaged, 1 to 16; True: as many as there are
    joint: bool  # questions stand on one canvas together, as few as may be
    labels: str | Sequence[str] | None  # "letters", "values", or labels of one token each
    reader: str  # "canvas" or "causal": whose next-token distribution is read, without a canvas
    instructions: str | None  # what is said before the state
    adapter: AdapterOption


class LoadingOptions(TypedDict, total=False):
    """Options of `load`."""

    device: str
    dtype: str | None
    threads: int | None
    progress: Callable[[int, int], None] | None
    max_rows: int
    max_context: int | None
    kv_memory: int | None
    prefix_memory: int
    deterministic: bool
    kv_type: str | None
    self_conditioning: str
    adapters: Mapping[str, str | os.PathLike[str]] | None  # folders by the names that adapters get
    adapter_memory: int | None


__all__ = [
    "AdapterOption",
    "AnswerOptions",
    "DecideOptions",
    "FillOptions",
    "GenerateOptions",
    "LoadingOptions",
    "ScoreOptions",
    "StreamOptions",
]
