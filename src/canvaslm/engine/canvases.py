"""How long a request's canvases are, how many it may have, and what each begins as."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from ..diffusion import Canvas, start_canvas
from ..diffusion.params import NO_LIMIT
from ..errors import PromptTooLong, UsageError
from ..model import ModelConfig
from ..types import Params, Request
from .guards import pinned
from .reader import verified
from .sequence import Sequence

# Below 16 rows the matrix library picks other kernels, whose sums differ in the last bit: a shorter canvas
# would be one thing alone and another in a crowd. Also the shortest chunk of a context that is encoded.
SHORTEST = 16


def canvas_length(params: Params, config: ModelConfig) -> int:
    """The places of each canvas: those asked for, or the model's.

    Raises UsageError for lengths that the model cannot have. A family whose context is cut into blocks of a
    canvas, or whose logits belong to the place after, was trained for its own length alone.
    """
    whole, wanted = config.canvas_length, params.canvas_length
    if wanted in (0, whole):
        return whole
    if config.facts.commit_attention == "block" or config.facts.logit_shift:
        raise UsageError(
            f"models of type {config.family} have canvases of {whole} places and no others: leave out "
            f"canvas_length = {wanted}",
            "canvas_length",
        )
    least = min(SHORTEST, whole)
    if not least <= wanted <= whole:
        raise UsageError(
            f"canvas_length = {wanted} is out of range for this model: {least} to {whole}, or 0 for {whole}",
            "canvas_length",
        )
    return wanted


def canvas_params(params: Params, request: Request, config: ModelConfig) -> Params:
    """The params with the numbers that canvases really have. Raises UsageError for what cannot be."""
    params = verified(replace(params, canvas_length=canvas_length(params, config)))
    if params.decoding == "causal" or request.prompt_only:
        params = replace(params, canvas_length=1)  # a token is a canvas of one place
    return replace(
        params,
        first_places=first_places(params, request, config),
        keep_steps=keep_steps(params, request, config),
    )


def keep_steps(params: Params, request: Request, config: ModelConfig) -> int:
    """The steps after which a sure place is kept; 0: never, as where all places of a canvas are asked about.

    Raises UsageError for a family whose logits belong to the place after: it needs each place's state.
    """
    if not params.keep_steps or request.watched or params.decoding == "causal":
        return 0
    if config.facts.logit_shift:
        raise UsageError(
            f"models of type {config.family} compute every place of a canvas: leave out keep_steps",
            "keep_steps",
        )
    return params.keep_steps


def first_places(params: Params, request: Request, config: ModelConfig) -> int:
    """The places that the first canvas begins with; 0: all. Where places of the answer mean something, all.

    Raises UsageError for what the model cannot have. `params` has the length of whole canvases.
    """
    whole, wanted = params.canvas_length, params.first_places
    if not wanted or request.given or request.allowed or request.draft or request.watched or whole == 1:
        return 0
    wanted = whole // 2 if wanted == NO_LIMIT else wanted
    if wanted >= whole:
        return 0
    try:
        return canvas_length(replace(params, canvas_length=max(wanted, SHORTEST)), config) % whole
    except UsageError as error:
        raise UsageError(str(error).replace("canvas_length", "first_places"), "first_places") from None


def answer_places(prompt: int, lead: int, params: Params, max_context: int) -> int:
    """Places of all canvases that an answer may take: as many as it wants, or the context holds.

    prompt: tokens. lead: those of them that stand on the first canvas. Raises PromptTooLong if not even one
    canvas fits.
    """
    length = params.canvas_length
    wanted = math.ceil((lead + params.max_new_tokens) / length)
    fits = (max_context - (prompt - lead)) // length
    if fits < 1:
        raise PromptTooLong(
            f"the prompt has {prompt} tokens; with a canvas of {length} it does "
            f"not fit the context of {max_context}: shorten it",
            "messages",
        )
    return min(wanted, fits) * length - lead


def expected_tokens(sequence: Sequence) -> int:
    """Tokens the sequence's cache may come to hold, the last canvas included."""
    if sequence.params.verify != "off":  # canvases begin anywhere
        return len(sequence.request.tokens) + sequence.max_tokens + sequence.places
    canvases = math.ceil((sequence.lead + sequence.max_tokens) / sequence.places)
    return len(sequence.request.tokens) - sequence.lead + sequence.places * canvases


def prompt_end(sequence: Sequence) -> tuple[int, ...]:
    """The end of the prompt that is no whole block."""
    tokens = sequence.request.tokens
    return tokens[len(tokens) - sequence.lead :]


def next_canvas(sequence: Sequence, config: ModelConfig, device: torch.device) -> Canvas:
    """The canvas after those that are done, with what is given on it."""
    index, places, request = len(sequence.reports), sequence.next_places, sequence.request
    if sequence.reader is not None:  # a canvas that is begun again has noise of its own
        index += sequence.reader.reads << 32
    draft = _within(request.draft, sequence.start, places)
    return start_canvas(
        sequence.seed, index, places, config.vocab_size, device, given(sequence), config.facts.mask_token_id,
        draft, request.draft_noise,
    )  # fmt: skip


def given(sequence: Sequence) -> dict[int, int]:
    """{place: token} of what is given on the canvas after those that are done."""
    found = _within(sequence.request.given, sequence.start, sequence.places)
    if not sequence.reports:
        found |= dict(enumerate(prompt_end(sequence)))
    again = {} if sequence.reader is None else sequence.reader.again
    return found | sequence.mended | again | pinned(sequence)


def _within(places: Mapping[int, int], first: int, count: int) -> dict[int, int]:
    """Of tokens at places of the answer those on a canvas, by its own places."""
    return {place - first: token for place, token in places.items() if first <= place < first + count}


__all__ = [
    "SHORTEST", "answer_places", "canvas_params", "expected_tokens", "given", "next_canvas",
    "prompt_end",
]  # fmt: skip
