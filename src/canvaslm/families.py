"""Facts of a family of models as plain data: what engine and text need to know of it besides its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What a token of a committed canvas, or of a prompt, sees when it is encoded: what stands before it,
# or, where the context is cut into blocks of a canvas's length from its first token on, the whole of
# its own block as well.
CommitAttention = Literal["causal", "block"]


@dataclass(frozen=True)
class ModelFacts:
    """How a family of models denoises and commits, as data: what the engine must know
    of it besides its sizes.

    The defaults are those of uniform diffusion with a causal encoder.
    """

    mask_token_id: int | None = (
        None  # canvases start as this token, and what is not accepted is it again; None: noise
    )
    # is drawn uniformly from the vocabulary. A mask token is never sampled.
    keeps_accepted: bool = (
        False  # an accepted place stays as it is; otherwise each step judges every place anew
    )
    self_conditioning: bool = True  # a step reads the soft embedding of the step before
    commit_attention: CommitAttention = "causal"
    logit_shift: int = 0  # 1: place i's logits are computed at place i - 1 (the first place's at itself)


@dataclass(frozen=True)
class ChatMarkers:
    """The control tokens of a family's chat format that matter outside its template, by their text.

    A thought stands between the two of `thought`, after `thought_name` and a line break; a tool call between
    the two of `call`. A marker that a vocabulary does not hold is never found.
    `control` are further texts that are control tokens even where a tokenizer file does not say so, or where
    they do not look like markers: text from users never becomes one of these.
    """

    turn_start: str = "<|turn>"
    turn_end: str = "<turn|>"
    thought: tuple[str, str] = ("<|channel>", "<channel|>")
    thought_name: str = "thought"
    call: tuple[str, str] = ("<|tool_call>", "<tool_call|>")
    ends: tuple[str, ...] = ("<turn|>", "<|tool_response>")  # the model's turn ends with these, besides EOS
    control: tuple[str, ...] = ()


__all__ = ["ChatMarkers", "CommitAttention", "ModelFacts"]
