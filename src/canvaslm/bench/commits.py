"""What it costs to commit a canvas: plainly, and read by the causal reader.

Both encode a canvas of tokens behind a context that is there already. The reader wants the last layer's later
half besides, and the head over every place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from ..engine import Engine
from ..types import Params, Request
from .engines import fresh
from .parts import clock_of, is_denoising
from .summary import median


@dataclass(frozen=True)
class CommitTimes:
    """Seconds of passes that do nothing else; taken in turn, so that both meet the same neighbours."""

    plain: tuple[float, ...]
    read: tuple[float, ...]

    def to_dict(self, step: float) -> dict[str, Any]:
        """Milliseconds, and what reading adds, in ms and as a share of a denoise step of `step` seconds."""
        plain, read = median(self.plain), median(self.read)
        return {
            "plain_ms": 1000 * plain,
            "read_ms": 1000 * read,
            "reading_ms": 1000 * (read - plain),
            "reading_share_of_step": (read - plain) / step if step > 0 else None,
        }


def measure_commits(
    engine: Engine, context: int, *, pairs: int = 4, tell: Callable[[str], None] = lambda text: None
) -> CommitTimes | None:
    """`pairs` of both behind `context` random tokens; None for a family without a causal reader."""
    config = engine.config
    if config.facts.commit_attention != "causal" or config.facts.logit_shift:
        return None
    used = fresh(engine, rows=1, prefix_cache=True, mixed=False)
    used.prefixes.limit = max(
        used.prefixes.limit, 4 * used.runner.cache_bytes(context + config.canvas_length)
    )
    random, times = Random(f"commits/{context}"), _EncodeTimes(used)
    before = tuple(random.randrange(config.vocab_size) for _ in range(context))

    def encode(read: bool) -> float:
        canvas = tuple(random.randrange(config.vocab_size) for _ in range(config.canvas_length))
        request = Request((*before, *canvas), Params(max_new_tokens=1, max_denoising_steps=1))
        if read:  # of the first place too: its token follows one that is context
            request = replace(request, prompt_logprobs=0, prompt_first=context, prompt_only=True)
        return times.of(request)

    tell(f"context {context}: commits")
    for read in (False, True):  # the context becomes known, and what is allocated once is allocated
        encode(read)
    found = [(encode(False), encode(True)) for _ in range(pairs)]
    return CommitTimes(*map(tuple, zip(*found, strict=True)))


class _EncodeTimes:
    """The seconds of an engine's passes that only encode."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._now, self._seconds = engine, clock_of(engine.runner.device), 0.0
        self._run = engine.runner.run
        engine.runner.run = self._timed  # type: ignore[method-assign]

    def _timed(self, rows: list[Any]) -> Any:
        begin = self._now()
        made = self._run(rows)
        if not is_denoising(rows):
            self._seconds += self._now() - begin
        return made

    def of(self, request: Request) -> float:
        """Of one request, run to its end."""
        self._seconds = 0.0
        self._engine.submit(request)
        while self._engine.has_work:
            self._engine.step()
        return self._seconds


__all__ = ["CommitTimes", "measure_commits"]
