"""Log-probabilities as the dialects word them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..text.tokenizer import Tokenizer
from ..types import TokenLogprob, TokenRead

Reads = Sequence[TokenRead | None]


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
        columns["top_logprobs"].append(_by_text((text, value) for text, _, value in t.top))
        columns["text_offset"].append(offset)
        offset += len(t.token) if t.data else 0  # control tokens are not in the text
    if doubt:
        columns["causal_logprobs"] = [_maybe(t.causal) for t in tokens]
        columns["causal_ranks"] = [t.rank for t in tokens]
    return columns


def _maybe(value: float | None) -> float | None:
    """null where nothing was read."""
    return None if value is None else _finite(value)


def prompt_columns(tokenizer: Tokenizer, tokens: Sequence[int], reads: Reads, best: int) -> dict[str, Any]:
    """As completions have them, of a prompt: each token of it, `best` of the likeliest at its place and the
    token itself. Nothing is said of the very first. Offsets are places in the prompt's text."""
    texts = [_text(tokenizer, token) for token in tokens]
    offsets, begun = [], 0  # characters
    for token in tokens:
        offsets.append(begun)
        data = b"" if tokenizer.is_control(token) else tokenizer.token_bytes(token)
        begun += sum(byte & 0xC0 != 0x80 for byte in data)
    named = [
        None if read is None else _named(token, read, best) for token, read in zip(tokens, reads, strict=True)
    ]
    logprobs = [None if read is None else _finite(read.logprob) for read in reads]
    return {
        "tokens": texts,
        "token_logprobs": logprobs,
        "top_logprobs": [
            None if pairs is None else _by_text((_text(tokenizer, i), value) for i, value in pairs)
            for pairs in named
        ],
        "text_offset": offsets,
        "causal_logprobs": logprobs,
        "causal_ranks": [None if read is None else read.rank for read in reads],
    }


def prompt_tables(
    tokenizer: Tokenizer, tokens: Sequence[int], reads: Reads, best: int
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token the `best` likeliest at its place and itself, by id."""
    made: list[dict[str, Any] | None] = []
    for token, read in zip(tokens, reads, strict=True):
        if read is None:
            made.append(None)
            continue
        ranks = {i: rank for rank, (i, _) in enumerate(read.top, 1)} | {token: read.rank}
        made.append(
            {
                str(i): {
                    "logprob": _finite(value), "rank": ranks[i], "decoded_token": _text(tokenizer, i),
                }
                for i, value in _named(token, read, best)
            }
        )  # fmt: skip
    return made


def _named(token: int, read: TokenRead, best: int) -> list[tuple[int, float]]:
    """The token itself, then the likeliest others: clients look whether any is likelier than the first."""
    others = [(i, value) for i, value in read.top[:best] if i != token]
    return [(token, read.logprob), *others]


def _by_text(named: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Of tokens that read the same, the likeliest."""
    made: dict[str, float] = {}
    for text, value in named:
        made[text] = max(_finite(value), made.get(text, -9999.0))
    return made


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _finite(value: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for the impossible."""
    return value if value > -9999.0 else -9999.0


__all__ = ["as_columns", "as_content", "prompt_columns", "prompt_tables"]
