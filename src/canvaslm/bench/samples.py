"""What is known of one answer, and what many of them come to. Times in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .summary import Summary

_ERRORS_SHOWN = 3


@dataclass(frozen=True)
class Sample:
    """One answer. None: whoever gave it does not tell. `error` says why there is none;
    then the rest means nothing."""

    seconds: float = 0.0  # from submission to the end
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None  # committed tokens, up to and including the first EOS
    queued: float | None = None
    first_draft: float | None = None
    first_commit: float | None = None
    gaps: tuple[float, ...] = ()  # between one commit and the next
    steps: tuple[float, ...] = ()  # denoise steps of each canvas
    ms_per_step: float | None = None
    finish_reason: str | None = None
    error: str | None = None


# metric -> its values in one sample
_METRICS: dict[str, Any] = {
    "request_s": lambda s: (s.seconds,),
    "queued_s": lambda s: (s.queued,),
    "first_draft_s": lambda s: (s.first_draft,),
    "first_commit_s": lambda s: (s.first_commit,),
    "between_commits_s": lambda s: s.gaps,
    "steps_per_canvas": lambda s: s.steps,
    "ms_per_step": lambda s: (s.ms_per_step,),
    "tokens_per_second": lambda s: (_rate(s.completion_tokens, s.seconds),),
}


def summarise(samples: Sequence[Sample], wall: float) -> dict[str, Any]:
    """Plain data: counts, rates over `wall` seconds, and a `Summary` (or None) for each
    metric of the good samples."""
    good = [sample for sample in samples if sample.error is None]
    tokens = _total(sample.completion_tokens for sample in good)
    return {
        "requests": len(samples),
        "failed": len(samples) - len(good),
        "errors": _errors(samples),
        "wall_s": wall,
        "requests_per_second": _rate(len(good), wall),
        "tokens_per_second": _rate(tokens, wall),
        "prompt_tokens": _total(sample.prompt_tokens for sample in good),
        "cached_tokens": _total(sample.cached_tokens for sample in good),
        "completion_tokens": tokens,
        "canvases": sum(len(sample.steps) for sample in good),
        "steps": sum(sum(sample.steps) for sample in good),
        "finish_reasons": dict(Counter(str(sample.finish_reason) for sample in good)),
        "metrics": {name: _summary(good, name) for name in _METRICS},
    }


def _summary(samples: Iterable[Sample], name: str) -> dict[str, float] | None:
    values = [v for sample in samples for v in _METRICS[name](sample) if v is not None]
    found = Summary.of(values)
    return None if found is None else found.to_dict()


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum; None where one is unknown."""
    known = list(counts)
    return None if any(count is None for count in known) else sum(c for c in known if c is not None)


def _rate(count: float | None, seconds: float) -> float | None:
    return None if count is None or seconds <= 0 else count / seconds


def _errors(samples: Iterable[Sample]) -> dict[str, int]:
    """The commonest errors and how often each came."""
    return dict(Counter(s.error for s in samples if s.error is not None).most_common(_ERRORS_SHOWN))


__all__ = ["Sample", "summarise"]
