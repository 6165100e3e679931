"""What the readers of tokenizer files hand to `Tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .decoding import Decoding

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class TokenizerParts:
    """What a tokenizer file says, checked by its reader. `source` names the file in messages.

    `control` holds texts of control tokens; `named` maps bos, eos, pad, unk, mask to ids.
    """

    backend: tokenizers.Tokenizer
    decoding: Decoding
    control: frozenset[str]
    source: str
    named: Mapping[str, int] = field(default_factory=dict)
    adds_bos: bool = True


__all__ = ["TokenizerParts"]
