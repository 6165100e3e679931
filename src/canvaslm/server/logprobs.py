"""Log-probabilities as the dialects word them."""

from __future__ import annotations

from typing import Any

from ..types import TokenLogprob


def as_content(tokens: tuple[TokenLogprob, ...], doubt: bool = False) -> dict[str, Any]:
    """As chat completions have them; with `doubt` two fields more, of what the causal reader says."""
    return {
        "content": [
            {
                **_one(t.token, t.data, t.logprob),
                "top_logprobs": [_one(*best) for best in t.top],
                **({"causal_logprob": _maybe(t.causal), "causal_rank": t.rank} if doubt else {}),
            }
            for t in tokens
        ],
        "refusal": None,
    }


def _one(token: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite(logprob), "bytes": list(data)}


def as_columns(tokens: tuple[TokenLogprob, ...], offset: int, doubt: bool = False) -> dict[str, Any]:
    """As completions have them, with `doubt` two columns more; `offset` is the number of characters before
    the first token."""
    columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for t in tokens:
        columns["tokens"].append(t.token)
        columns["token_logprobs"].append(_finite(t.logprob))
        columns["top_logprobs"].append({text: _finite(value) for text, _, value in t.top})
        columns["text_offset"].append(offset)
        offset += len(t.token)
    if doubt:
        columns["causal_logprobs"] = [_maybe(t.causal) for t in tokens]
        columns["causal_ranks"] = [t.rank for t in tokens]
    return columns


def _maybe(value: float | None) -> float | None:
    """null where nothing was read."""
    return None if value is None else _finite(value)


def _finite(value: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for the impossible."""
    return value if value > -9999.0 else -9999.0


__all__ = ["as_columns", "as_content"]
