"""The tokens by which the engine tells where an answer stands: a thought's markers, and what says nothing."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import TurnMarks
from .tokenizer import Tokenizer
from .toolcalls import QUOTE

# Vocabularies have tokens for runs of white space. Whatever these texts are made of shows nothing.
_LONGEST_RUN = 32
_SPACES = tuple(sign * count for sign in " \n\t" for count in range(1, _LONGEST_RUN))


def turn_marks(tokenizer: Tokenizer) -> TurnMarks:
    """Those of a tokenizer's chat format; without markers where its vocabulary does not have both."""
    opens, closes = (tokenizer.marker_id(marker) for marker in tokenizer.markers.thought)
    # A call says something, and a quote outside one is written as `"`.
    silent = set(tokenizer.control_texts) - {tokenizer.markers.call[0], QUOTE}
    controls = {tokenizer.marker_id(text) for text in silent}
    spaces = {token for text in _SPACES for token in tokenizer.encode(text)}
    blank = frozenset(token for token in controls | spaces if token is not None)
    if opens is None or closes is None:
        return TurnMarks(blank=blank)
    name = tokenizer.encode(f"{tokenizer.markers.thought_name}\n")
    return TurnMarks(opens, closes, len(name), blank=blank)


def answer_end(tokenizer: Tokenizer, ends: Sequence[int]) -> int:
    """Of the tokens that end an answer (one at least), the one that a model of chats writes."""
    turn_end = tokenizer.marker_id(tokenizer.markers.turn_end)
    return turn_end if turn_end is not None and turn_end in ends else ends[0]


__all__ = ["answer_end", "turn_marks"]
