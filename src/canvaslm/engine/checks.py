"""What a request must fulfil to be queued, and what is told of one that failed."""

from __future__ import annotations

import math

import torch

from ..errors import CanvasError, EngineFailure, OutOfMemory, UsageError
from ..model import Model, ModelConfig
from ..model.adapters import check_adapter
from ..model.masks import block_of
from ..types import Constraint, Request
from .rules import check_watched

MAX_TOP_LOGPROBS = 20


def adapt_for(request: Request, model: Model) -> None:
    """Makes the model heed adapters, if the request has any. Raises UsageError where one does not fit the
    model, or its scale is no number."""
    for use in request.adapters:
        if not math.isfinite(use.scale):
            raise UsageError(f"an adapter's scale must be a finite number, not {use.scale}", "adapter")
        shapes = model.adaptable()
        for name, delta in (*use.adapter.encode.items(), *use.adapter.denoise.items()):
            if shapes.get(name) != delta.shape:
                check_adapter(use.adapter, shapes)
        model.adapt()


def check_tokens(request: Request, config: ModelConfig) -> None:
    """Raises UsageError for tokens that are none, and numbers that cannot be."""
    vocab = config.vocab_size
    if request.constraint is not None and block_of(config) is not None:
        raise UsageError(
            f"constraints commit parts of canvases, which models of type {config.family} cannot continue",
            "constraint",
        )
    if not request.tokens:
        raise UsageError("the prompt is empty", "messages")
    placed = (*request.given.values(), *request.draft.values())
    if not all(0 <= token < vocab for token in (*request.tokens, *placed)):
        raise UsageError(f"a token id is outside the vocabulary of {vocab}", "messages")
    if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise UsageError(
            f"top_logprobs = {request.top_logprobs} is not in 0 .. {MAX_TOP_LOGPROBS}", "top_logprobs"
        )
    if not 0 <= request.draft_noise <= 1:
        raise UsageError(f"draft_noise = {request.draft_noise} is out of range: 0 to 1", "draft_noise")
    if not all(0 <= index < len(request.tokens) for index in request.content_keys):
        raise UsageError("a content key belongs to no token of the prompt", "content_keys")
    if not 0 <= request.shared < len(request.tokens):
        raise UsageError(
            f"shared = {request.shared} is out of range: 0 to {len(request.tokens) - 1}", "shared"
        )
    check_watched(request.watched, vocab)


def check_places(request: Request, places: int) -> None:
    """Raises UsageError for given places beyond the canvases that the request may have."""
    for place in (*request.given, *request.allowed, *request.watched):
        if not 0 <= place < places:
            raise UsageError(
                f"the given place {place} is outside the {places} places of canvases that max_new_tokens "
                "and "
                "the context allow",
                "given",
            )


def check_room(constraint: Constraint | None, limit: int) -> None:
    """Raises UsageError where no answer of the constraint fits. limit: tokens that there is room for."""
    if constraint is not None and constraint.shortest > limit:
        raise UsageError(
            f"the shortest valid answer has {constraint.shortest} tokens, and there is room for {limit}: "
            "raise max_new_tokens",
            "max_new_tokens",
        )


def check_memory(needed: int, limit: int | None) -> None:
    """Raises UsageError where a request may need more bytes of keys and values than there are."""
    if limit is not None and needed > limit:
        raise UsageError(
            f"the request may need {needed / 2**20:.1f} MiB of keys and values, kv_memory is "
            f"{limit / 2**20:.1f} MiB: ask for fewer max_new_tokens or raise kv_memory",
            "max_new_tokens",
        )


def known_error(error: Exception) -> CanvasError:
    """An error as one that callers expect. Torch tells of memory that it cannot have in a RuntimeError."""
    if isinstance(error, CanvasError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return OutOfMemory(f"a step does not fit in memory: shorten the request, or run fewer ({error})")
    return EngineFailure(f"{type(error).__name__}: {error}")


__all__ = [
    "MAX_TOP_LOGPROBS",
    "adapt_for",
    "check_memory",
    "check_places",
    "check_room",
    "check_tokens",
    "known_error",
]
