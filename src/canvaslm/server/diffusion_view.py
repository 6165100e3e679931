"""The `diffusion` object: what a step did to a canvas, for clients that draw it.

Strings `accepted` and `changed` have one character, 1 or 0, for every place of the canvas;
`entropy` and `pieces` one entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..types import Committed, Draft

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


def after_step(draft: Draft, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    """A canvas in the making. `text` is the draft up to its first EOS, `pieces` how each place reads."""
    ends = [i for i, token in enumerate(draft.tokens) if token in eos_token_ids]
    text = tokenizer.decode(draft.tokens[: ends[0]] if ends else draft.tokens)
    return {
        "canvas": draft.canvas,
        "step": draft.step,
        "steps_max": draft.steps_max,
        "state": "denoising",
        "temperature": round(draft.temperature, 4),
        "text": text,
        "pieces": [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in draft.tokens],
        "accepted": _marks(draft.accepted),
        "changed": _marks(draft.changed),
        "entropy": [round(value, 2) for value in draft.entropy],
        "mean_entropy": round(sum(draft.entropy) / max(1, len(draft.entropy)), 5),
        "stop_reason": None,
    }


def after_canvas(committed: Committed) -> dict[str, Any]:
    """A canvas that is done; its text has been in the content deltas."""
    report = committed.report
    return {
        "canvas": committed.canvas,
        "step": report.steps,
        "reads": report.reads,
        "computed": report.computed,
        "state": "committed",
        "mean_entropy": round(report.mean_entropy, 5),
        "stop_reason": report.stop,
    }


def _marks(flags: Sequence[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


__all__ = ["after_canvas", "after_step"]
