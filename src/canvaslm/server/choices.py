"""Choices, the answers to one request of a client: one event of one of them, all of one
together, figures of all."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..text.transcript import ReplyBuilder
from ..types import Draft, Event, Failed, Finished, Note, TokenLogprob, ToolCall


@dataclass(frozen=True)
class ChoiceEvent:
    """An event of one choice, its text filled in, and what it adds to the answer."""

    choice: int
    event: Event

    @property
    def text(self) -> str:
        """Text to append; empty for drafts."""
        return "" if isinstance(self.event, Draft | Failed) else self.event.text

    @property
    def thinking(self) -> str:
        return "" if isinstance(self.event, Draft | Failed) else self.event.thinking

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return () if isinstance(self.event, Draft | Failed) else self.event.tool_calls

    @property
    def says(self) -> bool:
        """Whether it adds something that clients take for an answer: thoughts are none."""
        return bool(self.tool_calls) or (bool(self.text) and not isinstance(self.event, Draft))

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return () if isinstance(self.event, Draft | Failed) else self.event.token_logprobs

    @property
    def draft(self) -> str | None:
        """The whole answer so far with the live canvas as it stands; None for all but drafts."""
        return self.event.text if isinstance(self.event, Draft) else None


async def gather(parts: AsyncIterable[ChoiceEvent], count: int) -> list[ReplyBuilder]:
    """All of `count` choices, when all are done. Raises what one of them failed with."""
    choices = [ReplyBuilder() for _ in range(count)]
    async for part in parts:
        choices[part.choice].add(part.event)
    return choices


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


def timings(ends: Sequence[Finished]) -> dict[str, Any]:
    """llama-server's `timings`, its times in milliseconds, with a part on diffusion.

    `predicted_per_second` is committed tokens over wall time (without queueing), never places times steps.
    Choices that ran side by side count with their tokens together and the longest of their times.
    """
    prompt = sum(end.usage.prompt_tokens - end.usage.cached_tokens for end in ends)
    answer = sum(end.usage.completion_tokens for end in ends)
    encode = sum(end.timings.encode for end in ends)
    wall = max(end.timings.total - end.timings.queued for end in ends)
    denoise = max(end.timings.denoise for end in ends)
    reports = [report for end in ends for report in end.canvases]
    steps, places = sum(report.steps for report in reports), sum(report.places for report in reports)
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
            "n_reads": sum(report.reads for report in reports),
            "canvas_tokens": places,
            "ms_per_step": _ms(denoise / steps) if steps else 0.0,
            "steps_per_second": _rate(steps, denoise),
            "canvas_tokens_per_second": _rate(places, denoise),
        },
    }


def finish_details(end: Finished) -> dict[str, Any]:
    """The field `finish_details` beside the reason why an answer ended, or nothing: what it says too little
    of."""
    told = [{"reason": note.kind, "message": note.text} for note in end.notes]
    return {"finish_details": told} if told else {}


def as_warnings(notes: Iterable[Note]) -> list[dict[str, str]]:
    """Notes as entries of the field `warnings`."""
    return [{"param": "", "code": note.kind, "message": note.text} for note in notes]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0


__all__ = [
    "ChoiceEvent",
    "Tokens",
    "as_warnings",
    "count_tokens",
    "finish_details",
    "gather",
    "openai_usage",
    "timings",
]
