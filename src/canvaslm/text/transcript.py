"""From an engine's events to text: the one place where committed tokens become an answer.

    transcript = Transcript(tokenizer, stop=["\\n\\n"])
    answer = ReplyBuilder()
    for event in events:                       # of one request, in order
        answer.add(transcript.read(event))     # the same event, with its text filled in
    reply = answer.reply()

Session, server, command line, evals and bench all go through here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..types import (
    Committed,
    Draft,
    Event,
    Failed,
    Finished,
    FinishReason,
    Reply,
    Settled,
    TokenLogprob,
    TokenRead,
    ToolCall,
)
from .decoding import StreamDecoder
from .logprobs import AnswerLogprobs
from .parse import Counts, Delta, ReplyParser
from .stop import StopStrings
from .tokenizer import Tokenizer

Filled = TypeVar("Filled", bound=Settled | Committed | Finished)


class Transcript:
    """Reads one request's events in order: answer, thoughts and tool calls apart, cut at stop strings.

    After a stop string `stopped` is true and all further text is dropped; the caller cancels the request,
    whose end then counts as "stop".
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: str | Sequence[str] | None = None,
        raw: bool = False,
        logprobs: bool = False,
        controls: bool = False,
        tools: Collection[str] | None = None,
    ) -> None:
        """`raw`: text as it is decoded, without thoughts and tool calls. `logprobs`: events carry the
        `token_logprobs` of their text; of control tokens too, with `raw` and `controls`. `tools`: what may be
        called; calls of anything else are text. None: all may. Raises UsageError for stop strings that are
        none.
        """
        self._parser: ReplyParser | PlainParser = (
            PlainParser(tokenizer) if raw else ReplyParser(tokenizer, tools=tools)
        )
        self.unknown_tools: list[str] = []  # called so far, and none of `tools`
        self.healed_calls: list[str] = []  # calls so far that were damaged, by the names of their tools
        self._stops = StopStrings([] if stop is None else stop)
        self._logprobs = AnswerLogprobs(tokenizer, raw=raw, controls=controls) if logprobs else None
        self._text: list[str] = []  # the answer so far
        self._bytes = 0  # of it
        self._calls = False
        self._mark()

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.matched is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.matched

    def read(self, event: Event) -> Event:
        """The same event with its text filled in. Of Finished, `reason` and `usage` become the final ones."""
        if isinstance(event, Draft):
            return replace(event, text="" if self.stopped else self._draft(event.tokens))
        if isinstance(event, Failed):
            return event
        if isinstance(event, Finished):
            return self._ending(event)
        read = self._fill(event, self._parser.feed(event.tokens))
        if isinstance(event, Committed):
            self._mark()
        return read

    def _ending(self, event: Finished) -> Finished:
        cut = event.reason in ("length", "cancelled") and not self.stopped
        read = self._fill(event, self._parser.close(cut=cut), last=True)
        reason: FinishReason = event.reason
        if self.stopped:
            reason = "stop"
        elif self._calls and reason == "stop":
            reason = "tool_calls"
        usage = replace(event.usage, reasoning_tokens=self._parser.counts.reasoning_tokens)
        return replace(read, reason=reason, usage=usage)

    def _mark(self) -> None:
        """Remembers where the live canvas begins: drafts are read from there."""
        self._fork = self._parser.copy()
        self._before = "".join([*self._text, self._stops.held])

    def _draft(self, tokens: tuple[int, ...]) -> str:
        """The answer's text if the draft were final. What stop strings hold back is in it."""
        parser = self._fork.copy()
        return "".join([self._before, parser.feed(tokens).text, parser.close().text])

    def _fill(self, event: Filled, delta: Delta, *, last: bool = False) -> Filled:
        """The event with what it adds to the answer; `last`: with what was held back, too."""
        if self.stopped:
            delta = Delta()
        text = self._stops.feed(delta.text)
        calls = () if self.stopped else delta.tool_calls
        self._calls = self._calls or bool(calls)
        self.unknown_tools += delta.unknown
        self.healed_calls += (call.name for call in calls if call.healed)
        if last:
            text += self._stops.close()
        if text:
            self._text.append(text)
            self._bytes += len(text.encode("utf-8", "replace"))
        tokens = self._token_logprobs(event, last)
        return replace(event, text=text, thinking=delta.thinking, tool_calls=calls, token_logprobs=tokens)

    def _token_logprobs(self, event: Event, last: bool) -> tuple[TokenLogprob, ...]:
        if self._logprobs is None:
            return ()
        self._logprobs.feed(event)
        return self._logprobs.take(None if last and not self.stopped else self._bytes)


class PlainParser:
    """Decodes without looking for channels: what `ReplyParser` is for answers to chats."""

    def __init__(self, tokenizer: Tokenizer, decoder: StreamDecoder | None = None) -> None:
        self._tokenizer = tokenizer
        self._decoder = decoder or StreamDecoder(tokenizer)
        self.counts = Counts()

    def feed(self, ids: Iterable[int]) -> Delta:
        """What these ids add."""
        return Delta(self._decoder.feed(ids))

    def close(self, *, cut: bool = False) -> Delta:
        """The end of the stream: what was held back."""
        return Delta(self._decoder.close())

    def copy(self) -> PlainParser:
        """A parser that continues from here on its own."""
        return PlainParser(self._tokenizer, self._decoder.copy())


@dataclass
class ReplyBuilder:
    """Adds up the events of one request, their text filled in. `end` is there once it has finished."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reads: list[TokenRead] = field(default_factory=list)
    steps_max: int = 0  # as the drafts said
    end: Finished | None = None

    def add(self, event: Event) -> None:
        """Takes the next event. Raises what made the request fail."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Draft):
            self.steps_max = event.steps_max
            return
        self.text += event.text
        self.thinking += event.thinking
        self.tool_calls += event.tool_calls
        self.logprobs += event.token_logprobs
        self.reads += event.reads if isinstance(event, Committed) else ()
        if isinstance(event, Finished):
            self.end = event
        else:
            self.tokens += event.tokens

    @property
    def finished(self) -> Finished:
        """The last event. Only when it has come."""
        assert self.end is not None, "every request ends in Finished or Failed"
        return self.end

    def reply(self, index: int = 0) -> Reply:
        """The whole answer, once it has finished; `index` is the number of its prompt among several."""
        end = self.finished
        return Reply(
            self.text, self.thinking, tuple(self.tool_calls), end.reason, end.usage, end.timings, end.seed,
            tuple(self.tokens), end.canvases, tuple(self.logprobs), index, end.notes,
            reads=tuple(self.reads),
        )  # fmt: skip


__all__ = ["PlainParser", "ReplyBuilder", "Transcript"]
