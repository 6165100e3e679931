"""What callers say beside their prompt: checked, and turned into what the engine's request needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..diffusion.params import nearest
from ..errors import UsageError
from ..options import StreamOptions
from ..types import DRAFT_NOISE, Message, Messages

_SEEDS = 2**63


def check_names(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UsageError that names the first unknown option, and the known one that it looks like."""
    names = list(known)
    for name in options:
        if name not in names:
            like = nearest(name, names)
            hint = f"did you mean {like!r}?" if like else f"known are {', '.join(sorted(names))}"
            raise UsageError(f"unknown option {name!r}: {hint}", name)


def turns_of(messages: Messages, system: str | None) -> Iterable[Message | Mapping[str, Any]]:
    if system is not None:
        yield Message("system", system)
    if isinstance(messages, str):
        yield Message("user", messages)
    elif isinstance(messages, Iterable) and not isinstance(messages, bytes | Mapping):
        yield from messages
    else:
        found = type(messages).__name__
        raise UsageError(f"messages should be a prompt or a list of messages, found {found}", "messages")


def best_wanted(logprobs: int | None, doubt: bool = False) -> int | None:
    """Log-probabilities of how many tokens beside the answer's own; None for none at all. What the causal
    reader says (`doubt`) comes beside the tokens' own."""
    if logprobs is None or logprobs is False:
        return 0 if doubt else None
    if not isinstance(logprobs, int):
        raise UsageError(f"logprobs should be a whole number, found {logprobs!r}", "logprobs")
    return 0 if logprobs is True else logprobs


def is_on(options: Mapping[str, Any], name: str) -> bool:
    """An option that is on or off; off where it is not given."""
    value = options.get(name)
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{name} should be true or false, found {value!r}", name)
    return bool(value)


def given_places(given: Mapping[int, int] | None) -> Mapping[int, int]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(n, int) for n in (*given, *given.values())):
        raise UsageError("given should be a table of places and token ids, as {0: 17}", "given")
    return given


def share_of_noise(given: float | None) -> float:
    """Of a draft's places, how many begin as noise."""
    if given is None:
        return DRAFT_NOISE
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise UsageError(f"draft_noise should be a number from 0 to 1, found {given!r}", "draft_noise")
    if not 0 <= given <= 1:
        raise UsageError(f"draft_noise = {given} is out of range: 0 to 1", "draft_noise")
    return given


def numbered(options: StreamOptions, index: int) -> StreamOptions:
    """The options of prompt number `index` of several: a seed that is given goes up by one for each."""
    seed = options.get("seed")
    if not isinstance(seed, int) or seed < 0:
        return options
    return {**options, "seed": (seed + index) % _SEEDS}


__all__ = ["best_wanted", "check_names", "given_places", "is_on", "numbered", "share_of_noise", "turns_of"]
