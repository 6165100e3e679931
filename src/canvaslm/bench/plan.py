"""What a run under load asks for, in process and of a server alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .prompts import Prompt

Tick = Callable[[int], None]


@dataclass(frozen=True)
class LoadOptions:
    """`concurrency`: requests in flight, one run for each number. `params`: `preset` and fields of `Params`.

    `max_rows` and `prefix_cache` are the engine's; a server has its own.
    """

    concurrency: tuple[int, ...] = (1,)
    repeats: int = 1
    warmup: int = 1
    max_rows: int = 16
    prefix_cache: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)

    def total(self, prompts: int) -> int:
        """Requests in all, warm-up included."""
        return len(self.concurrency) * (prompts * self.repeats + self.warmup)

    def rounds(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, dict[str, Any]]]:
        """Every prompt `repeats` times, in rounds, with its parameters: each time another seed."""
        params = dict(self.params)
        first = max(0, params.pop("seed", None) or 0)
        for number in range(len(prompts) * self.repeats):
            prompt = prompts[number % len(prompts)]
            own = {} if prompt.max_new_tokens is None else {"max_new_tokens": prompt.max_new_tokens}
            yield prompt, {**params, **own, "seed": first + number}

    def to_dict(self, prompts: int) -> dict[str, Any]:
        """Plain data, with the number of prompts."""
        return {"prompts": prompts, **asdict(self)}


__all__ = ["LoadOptions", "Tick"]
