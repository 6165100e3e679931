"""Log-probabilities of the tokens that make up an answer's text."""

from __future__ import annotations

from collections import deque

from ..types import Committed, Event, Settled, TokenLogprob
from .tokenizer import Tokenizer


class AnswerLogprobs:
    """Picks the tokens of the answer out of committed canvases and hands them out as
    far as the text has got."""

    def __init__(self, tokenizer: Tokenizer, *, raw: bool = False, controls: bool = False) -> None:
        """`raw`: everything but control tokens is text. `controls`: with that, control tokens are handed out
        as well, by name and without bytes."""
        self._tokenizer = tokenizer
        self._controls = raw and controls
        self._ended = False
        markers = tokenizer.markers
        turn = tokenizer.marker_id(markers.turn_start)
        self._ends: set[int | None] = set() if raw else {*tokenizer.eos_ids, turn}
        # Between these stands what is not the answer's text.
        asides = (markers.thought, markers.call)
        ids = {tokenizer.marker_id(opens): tokenizer.marker_id(closes) for opens, closes in asides}
        self._asides = {} if raw else {a: b for a, b in ids.items() if a is not None}
        self._until: int | None = None  # the marker that ends an aside
        self._settled: list[int] = []  # tokens sent before their canvas was done
        self._waiting: deque[TokenLogprob] = deque()
        self._passed = 0  # bytes handed out

    def feed(self, event: Event) -> None:
        """Takes the next event; only those that commit tokens matter."""
        if isinstance(event, Settled):
            self._settled += event.tokens
        elif isinstance(event, Committed):
            tokens, self._settled = [*self._settled, *event.tokens], []
            tops = event.top_logprobs or ((),) * len(tokens)
            reads = [*event.reads, *[None] * (len(tokens) - len(event.reads))]
            for token, logprob, top, read in zip(tokens, event.logprobs, tops, reads, strict=False):
                if self._is_text(token):
                    best = tuple((*self._shown(i), value) for i, value in top)
                    said = (None, None) if read is None else (read.logprob, read.rank)
                    self._waiting.append(TokenLogprob(*self._shown(token), logprob, best, *said))

    def take(self, passed: int | None) -> tuple[TokenLogprob, ...]:
        """The tokens that begin within the first `passed` bytes of the answer; None: all."""
        ready = []
        while self._waiting and (passed is None or self._passed < passed):
            token = self._waiting.popleft()
            self._passed += len(token.data)
            ready.append(token)
        return tuple(ready)

    def _is_text(self, token: int) -> bool:
        self._ended = self._ended or token in self._ends
        if self._ended:
            return False
        if self._until is not None:
            if token == self._until:
                self._until = None
            return False
        if token in self._asides:
            self._until = self._asides[token]
            return False
        return self._controls or not self._tokenizer.is_control(token)

    def _shown(self, token: int) -> tuple[str, bytes]:
        data = self._tokenizer.token_bytes(token)
        hidden = self._controls and self._tokenizer.is_control(token)
        return data.decode("utf-8", "replace"), b"" if hidden else data


__all__ = ["AnswerLogprobs"]
