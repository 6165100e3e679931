"""Whole answers: what all pieces of a choice come to, their token counts and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..types import Finished, ToolCall
from .logprobs import TokenLogprob
from .reading import ChoiceEvent
from .service import Answers


@dataclass
class CollectedChoice:
    """One choice. `end` is there once it has finished."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None

    def add(self, piece: ChoiceEvent) -> None:
        """Takes the next piece."""
        self.text += piece.text
        self.thinking += piece.thinking
        self.tool_calls += piece.tool_calls
        self.logprobs += piece.logprobs
        if isinstance(piece.event, Finished):
            self.end = piece.event

    @property
    def finished(self) -> Finished:
        assert self.end is not None
        return self.end


async def gather(answers: Answers) -> list[CollectedChoice]:
    """All choices, when all are done. Raises what one of them failed with."""
    wholes = [CollectedChoice() for _ in answers.requests]
    async for piece in answers:
        wholes[piece.choice].add(piece)
    return wholes


@dataclass(frozen=True)
class Tokens:
    """Tokens of some choices together. A prompt counts once, however many answers it got."""

    prompt: int
    cached: int
    answer: int
    reasoning: int


def count_tokens(ends: Sequence[Finished], n: int) -> Tokens:
    """`ends` in the order of the choices, `n` of them for each prompt."""
    firsts = ends[::n]
    return Tokens(
        sum(end.usage.prompt_tokens for end in firsts),
        sum(end.usage.cached_tokens for end in firsts),
        sum(end.usage.completion_tokens for end in ends),
        sum(end.usage.reasoning_tokens for end in ends),
    )


def openai_usage(tokens: Tokens) -> dict[str, Any]:
    """As OpenAI counts."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.answer,
        "total_tokens": tokens.prompt + tokens.answer,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def timings(ends: Sequence[Finished], canvas_length: int) -> dict[str, Any]:
    """llama-server's `timings`, its times in milliseconds, with a part on diffusion.

    `predicted_per_second` is committed tokens over wall time (without queueing), never places times steps. Choices
    that ran side by side count with their tokens together and the longest of their times.
    """
    prompt = sum(end.usage.prompt_tokens - end.usage.cached_tokens for end in ends)
    answer = sum(end.usage.completion_tokens for end in ends)
    encode = sum(end.timings.encode for end in ends)
    wall = max(end.timings.total - end.timings.queued for end in ends)
    denoise = max(end.timings.denoise for end in ends)
    reports = [report for end in ends for report in end.canvases]
    steps, places = sum(report.steps for report in reports), len(reports) * canvas_length
    return {
        "cache_n": sum(end.usage.cached_tokens for end in ends),
        "prompt_n": prompt,
        "prompt_ms": _ms(encode),
        "prompt_per_second": _rate(prompt, encode),
        "predicted_n": answer,
        "predicted_ms": _ms(wall),
        "predicted_per_second": _rate(answer, wall),
        "queued_ms": _ms(max(end.timings.queued for end in ends)),
        "diffusion": {
            "n_blocks": len(reports),
            "n_steps": steps,
            "canvas_tokens": places,
            "ms_per_step": _ms(denoise / steps) if steps else 0.0,
            "steps_per_second": _rate(steps, denoise),
            "canvas_tokens_per_second": _rate(places, denoise),
        },
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0


__all__ = ["CollectedChoice", "Tokens", "count_tokens", "gather", "openai_usage", "timings"]
