"""The tokens that a caller favours or forbids, as the engine's `TokenRules`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..errors import UsageError
from ..types import TokenRules

# OpenAI's clients can send no infinity: their -100 means that a token never comes.
NEVER_AT = -100.0


def rules_of(logit_bias: Mapping[int, float] | None, allowed: Sequence[int] | None) -> TokenRules:
    """logit_bias: {token id: what is added to its logit}, where -100 and less forbids; allowed: the only
    tokens that may come. Raises UsageError for what is neither.

    >>> rules_of({5: 1.5, 7: -100}, None).biases
    ((5, 1.5), (7, -inf))
    """
    return TokenRules(_biases(logit_bias), _allowed(allowed))


def _biases(given: Mapping[int, float] | None) -> tuple[tuple[int, float], ...]:
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise UsageError("logit_bias should be a table of token ids and numbers, as {17: -2.5}", "logit_bias")
    for token, value in given.items():
        if not _is_whole(token):
            raise UsageError(f"logit_bias: {token!r} should be a token id", "logit_bias")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"logit_bias of token {token} should be a number, found {value!r}", "logit_bias")
    return tuple((token, -math.inf if value <= NEVER_AT else float(value)) for token, value in given.items())


def _allowed(given: Sequence[int] | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not all(map(_is_whole, given)):
        raise UsageError("allowed_token_ids should be a list of token ids, as [17, 18]", "allowed_token_ids")
    return tuple(given)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = ["NEVER_AT", "rules_of"]
