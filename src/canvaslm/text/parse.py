"""From committed token ids to answer, thoughts and tool calls, as a stream.

A model's turn may hold thoughts (Gemma's: `<|channel>thought\\n ... <channel|>`), tool calls
(`<|tool_call> ... <tool_call|>`) and the answer between and after them; which tokens say so the tokenizer's
`markers` tell. Only control *ids* steer the parser: text that merely looks like a marker is text.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from ..types import ToolCall
from .decoding import StreamDecoder
from .healing import heal_call
from .tokenizer import Tokenizer
from .toolcalls import QUOTE, Quote, parse_call

State = Literal["answer", "thinking", "call", "ended"]


@dataclass(frozen=True)
class Delta:
    """What some ids added: answer text, thinking, finished tool calls. `unknown` names tools that were called
    and that there are none of: such calls are text."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    unknown: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.thinking or self.tool_calls)


@dataclass
class Counts:
    """Tokens seen. `reasoning_tokens`: between the channel markers, the channel's name left out."""

    tokens: int = 0
    reasoning_tokens: int = 0


@dataclass
class _Output:
    """A delta in the making."""

    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def delta(self) -> Delta:
        return Delta("".join(self.text), "".join(self.thinking), tuple(self.tool_calls), tuple(self.unknown))


class ReplyParser:
    """Reads one turn. The deltas joined are the same however the ids were cut into `feed` calls.

    Held back until decided: half characters, the channel's name, a line break that may be the last of a
    thought, a whole tool call. A call with small damage is healed (see `healing`); one that is malformed
    beyond that, or calls what is not among `tools`, comes out as the text it is, its markers written out. The
    turn ends at an id of `tokenizer.eos_ids` or at the start of another turn; nothing after it is emitted.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, thinking: bool = False, tools: Collection[str] | None = None
    ) -> None:
        """`thinking=True` when the prompt itself opened the thought channel and wrote its name. `tools`: the
        names that may be called; None: any."""
        self._tokenizer, self._tools = tokenizer, tools
        self._decoder = StreamDecoder(tokenizer)
        self._state: State = "thinking" if thinking else "answer"
        self._header: str | None = None if thinking else ""
        self._break = ""  # a line break that may end the thought
        self._call: list[str | Quote] = []
        self.counts = Counts()
        markers = tokenizer.markers
        self._thought_open, self._header_text = markers.thought[0], markers.thought_name
        self._call_open, self._call_close = markers.call
        ids = {name: tokenizer.marker_id(name) for name in (*markers.thought, *markers.call, QUOTE)}
        self._markers = {i: name for name, i in ids.items() if i is not None}
        turn = tokenizer.marker_id(markers.turn_start)
        self._ends = frozenset(tokenizer.eos_ids) | ({turn} if turn is not None else set())

    @property
    def ended(self) -> bool:
        """Whether the turn's end was seen."""
        return self._state == "ended"

    def feed(self, ids: Iterable[int]) -> Delta:
        """What these ids add."""
        out = _Output()
        for token_id in ids:
            if self._state == "ended":
                break
            self.counts.tokens += 1
            if token_id in self._ends:
                self._end(out)
            elif token_id in self._markers:
                self._marker(self._markers[token_id], out)
            elif not self._tokenizer.is_control(token_id):
                self._plain(token_id, out)
        return out.delta()

    def close(self, *, cut: bool = False) -> Delta:
        """The end of the stream: what was held back. `cut`: the answer was to go on, so that a call which is
        not complete is text."""
        out = _Output()
        self._end(out, cut=cut)
        return out.delta()

    def copy(self) -> ReplyParser:
        """A parser that continues from here on its own, to look at a draft without disturbing this one."""
        twin = copy.copy(self)
        twin._decoder = self._decoder.copy()
        twin._call = list(self._call)
        twin.counts = copy.copy(self.counts)
        return twin

    # -- one id ----------------------------------------------------------------------------------------------

    def _plain(self, token_id: int, out: _Output) -> None:
        if self._state == "thinking" and self._header is None:
            self.counts.reasoning_tokens += 1
        self._text(self._decoder.feed([token_id]), out)

    def _marker(self, name: str, out: _Output) -> None:
        if name == QUOTE:
            self._quote(out)
            return
        self._leave(out, closed=name == self._call_close)
        if name == self._thought_open:
            self._state, self._header = "thinking", ""
        elif name == self._call_open:
            self._state, self._call = "call", []
        # A stray closing marker closes nothing and is dropped like other control tokens.

    def _quote(self, out: _Output) -> None:
        self._text(self._decoder.close(), out)
        if self._state == "call":
            self._call.append(Quote())
        else:
            self._text('"', out)

    def _text(self, text: str, out: _Output) -> None:
        if not text:
            return
        if self._state == "answer":
            out.text.append(text)
        elif self._state == "call":
            self._call.append(text)
        elif self._state == "thinking":
            self._thought(text, out)

    def _thought(self, text: str, out: _Output) -> None:
        """Drops the channel's name and its line break, then holds back one line break at the end."""
        if self._header is not None:
            self._header += text
            if _may_become_header(self._header, self._header_text):
                return
            text, self._header = _without_header(self._header, self._header_text), None
        text = self._break + text
        self._break = "\n" if text.endswith("\n") else ""
        out.thinking.append(text.removesuffix("\n"))

    # -- leaving a state -------------------------------------------------------------------------------------

    def _leave(self, out: _Output, *, closed: bool, cut: bool = False) -> None:
        """Back to the answer. `closed`: by the marker that closes a call."""
        self._text(self._decoder.close(), out)
        if self._state == "call":
            self._finish_call(out, closed=closed, cut=cut)
        elif self._state == "thinking" and self._header is not None:
            out.thinking.append(_without_header(self._header, self._header_text))
        self._state, self._header, self._break = "answer", "", ""

    def _finish_call(self, out: _Output, *, closed: bool, cut: bool) -> None:
        call = parse_call(self._call)
        if call is not None and not closed:
            call = replace(call, healed=True)
        if call is None and not cut:
            call = heal_call(self._call, closed=closed)
        if call is not None and self._tools is not None and call.name not in self._tools:
            out.unknown.append(call.name)
            call = None
        if call is None:
            self._spill(out)
            out.text.append(self._call_close if closed else "")
        else:
            out.tool_calls.append(call)
        self._call = []

    def _spill(self, out: _Output) -> None:
        """A malformed call becomes text, its markers written out."""
        written = (QUOTE if isinstance(piece, Quote) else piece for piece in self._call)
        out.text.append(self._call_open + "".join(written))
        self._call, self._state = [], "answer"

    def _end(self, out: _Output, *, cut: bool = False) -> None:
        if self._state != "ended":
            self._leave(out, closed=False, cut=cut)
            self._state = "ended"


def _may_become_header(text: str, name: str) -> bool:
    """Whether a channel's first characters are still undecided: part of its name, or the name without
    more."""
    return (name + "\n").startswith(text) and text != name + "\n"


def _without_header(text: str, name: str) -> str:
    rest = text.removeprefix(name)
    return rest.removeprefix("\n") if rest != text and (not rest or rest[0].isspace()) else text


__all__ = ["Counts", "Delta", "ReplyParser"]
