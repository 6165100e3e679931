"""From an engine's events to pieces of text: answer, thoughts and tool calls apart, cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..text.decoding import StreamDecoder
from ..text.parse import Delta, ReplyParser
from ..text.stop import StopStrings
from ..types import (
    Committed,
    Draft,
    Event,
    Failed,
    Finished,
    FinishReason,
    Settled,
    ToolCall,
)
from .logprobs import LogprobReader, TokenLogprob

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChoiceEvent:
    """An event of one choice, and what it adds to the answer.

    `draft` is the whole answer so far with the canvas in the making as it stands; it is None for all but drafts. Of a
    Finished event, `event.reason` and `event.usage` are the final ones.
    """

    choice: int
    event: Event
    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    draft: str | None = None


class Reader:
    """Reads one request's events in order.

    `raw` answers are text as it is decoded, without thoughts and tool calls. After a stop string `stopped` is true and
    all further text is dropped; the caller cancels the request, whose end then counts as "stop".
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: str | Sequence[str] | None = None,
        raw: bool = False,
        logprobs: bool = False,
    ) -> None:
        """Raises UsageError for stop strings that are none."""
        self._tokenizer = tokenizer
        self._parser: ReplyParser | PlainParser = PlainParser(tokenizer) if raw else ReplyParser(tokenizer)
        self._stops = StopStrings([] if stop is None else stop)
        self._logprobs = LogprobReader(tokenizer, raw=raw) if logprobs else None
        self._text: list[str] = []
        self._calls = False

    @property
    def stopped(self) -> bool:
        return self._stops.matched is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.matched

    def read(self, choice: int, event: Event) -> ChoiceEvent:
        """What an event adds."""
        if isinstance(event, Draft):
            return ChoiceEvent(choice, event, draft="" if self.stopped else self._draft(event.tokens))
        if isinstance(event, Settled | Committed):
            return self._add(choice, event, self._parser.feed(event.tokens))
        if isinstance(event, Finished):
            piece = self._add(choice, event, self._parser.close())
            rest = self._stops.close()
            self._text.append(rest)
            piece = replace(piece, text=piece.text + rest, event=self._ending(event))
            return self._with_logprobs(piece, last=True)
        return ChoiceEvent(choice, event)

    def _add(self, choice: int, event: Settled | Committed | Finished, delta: Delta) -> ChoiceEvent:
        if self.stopped:
            return self._with_logprobs(ChoiceEvent(choice, event))
        text = self._stops.feed(delta.text)
        self._text.append(text)
        calls = () if self.stopped else delta.tool_calls
        self._calls = self._calls or bool(calls)
        return self._with_logprobs(ChoiceEvent(choice, event, text, delta.thinking, calls))

    def _with_logprobs(self, piece: ChoiceEvent, *, last: bool = False) -> ChoiceEvent:
        if self._logprobs is None:
            return piece
        self._logprobs.feed(piece.event)
        passed = (
            None if last and not self.stopped else sum(len(t.encode("utf-8", "replace")) for t in self._text)
        )
        return replace(piece, logprobs=piece.logprobs + self._logprobs.take(passed))

    def _draft(self, tokens: tuple[int, ...]) -> str:
        """The answer's text if the draft were final. What `StopStrings` holds back is in it."""
        parser = self._parser.copy()
        return "".join([*self._text, self._stops.held, parser.feed(tokens).text, parser.close().text])

    def _ending(self, event: Finished) -> Finished:
        reason: FinishReason = event.reason
        if self.stopped:
            reason = "stop"
        elif self._calls and reason == "stop":
            reason = "tool_calls"
        usage = replace(event.usage, reasoning_tokens=self._parser.counts.reasoning_tokens)
        return replace(event, reason=reason, usage=usage)


class PlainParser:
    """Decodes without looking for channels: what `ReplyParser` is for answers to chats."""

    def __init__(self, tokenizer: Tokenizer, decoder: StreamDecoder | None = None) -> None:
        from ..text.parse import Counts

        self._tokenizer = tokenizer
        self._decoder = decoder or StreamDecoder(tokenizer)
        self.counts = Counts()

    def feed(self, ids: Sequence[int]) -> Delta:
        return Delta(self._decoder.feed(ids))

    def close(self) -> Delta:
        return Delta(self._decoder.close())

    def copy(self) -> PlainParser:
        return PlainParser(self._tokenizer, self._decoder.copy())


def is_last(piece: ChoiceEvent) -> bool:
    """Whether the choice ends with this piece."""
    return isinstance(piece.event, Finished | Failed)


__all__ = ["ChoiceEvent", "PlainParser", "Reader", "is_last"]
