"""A stream of events as a canvas that denoises in place.

The caller feeds events as they come and is never held up: a second thread draws the newest state, at
most 20 times a second, and at once when the terminal changes its size. Whatever happens, the terminal
is given back as it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from types import FrameType, TracebackType
from typing import Any

from ..text.doubt import DoubtText
from ..types import (
    Committed,
    Draft,
    Event,
    Failed,
    Finished,
    ToolCall,
)
from .canvas_view import FrameState, Line, Style, TokenTexts, render
from .doubt import doubt_parts
from .glyphs import visible
from .output import call_line
from .terminal import Screen

INTERVAL = 1 / 20  # seconds between redraws, at least
_SLOW = 1.0  # seconds without an event after which the elapsed time is drawn anew

_THOUGHT = Style(dim=True)


@dataclass
class Fresh:
    """What has become certain since text was last printed; the start of a live canvas waits for its end."""

    text: list[tuple[str, int]] = field(default_factory=list)  # in parts, with their levels of doubt
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def add(self, event: Any, doubt: DoubtText | None) -> None:
        """Adds the deltas of an event that has them."""
        if event.text:
            self.text += [(event.text, 0)] if doubt is None else doubt.feed(event)
        self.thinking += event.thinking
        self.tool_calls += event.tool_calls


class Tail:
    """Settled text that is not printed yet, in parts of one style each."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, Style]] = []

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self._parts)

    def add(self, text: str, style: Style) -> None:
        """Goes on with text; `visible` already."""
        if text:
            self._parts.append((text, style))

    def lines(self) -> list[tuple[str, Style]]:
        """Takes all whole lines."""
        last = max((i for i, (text, _) in enumerate(self._parts) if "\n" in text), default=None)
        if last is None:
            return []
        text, style = self._parts[last]
        whole, _, left = text.rpartition("\n")
        taken, self._parts = [*self._parts[:last], (whole + "\n", style)], self._parts[last + 1 :]
        if left:
            self._parts.insert(0, (left, style))
        return taken

    def rest(self) -> list[tuple[str, Style]]:
        """Takes what is left, as a line."""
        self.add("\n" if self._parts else "", Style())
        return self.lines()


class LiveCanvas:
    """Draws the events of one answer. Use as a context manager around the stream.

    Settled text scrolls away as plain text; only the live canvas is drawn over. With a `pace`, every step is
    shown for that many seconds at least: events wait in a queue meanwhile, and the model goes on at its own
    speed. `clock` is in seconds.
    """

    def __init__(
        self,
        screen: Screen,
        vocabulary: TokenTexts,
        ends: Collection[int] = (),
        *,
        pace: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        note: str = "reading the prompt",
        doubt: bool = False,
    ) -> None:
        self._screen, self._vocabulary, self._ends = screen, vocabulary, frozenset(ends)
        self._clock, self._pace = clock, pace
        self._waiting: deque[tuple[Event, float]] = deque()
        self._shown_at = -pace
        self._state = FrameState(note=note)
        self._started = self._event_at = self._drawn_at = clock()
        self._dirty = self._open = self._thinking = False
        self._pending: tuple[Draft, float] | None = None  # not yet turned into cells: many are never drawn
        self._fresh, self._tail = Fresh(), Tail()
        self._doubt = DoubtText() if doubt else None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._painter: threading.Thread | None = None

    # -- what the caller does --------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Takes the next event. Failed is left to the caller."""
        with self._lock:
            self._event_at = self._clock()
            if self._pace:
                self._waiting.append((event, self._event_at))
            else:
                self._take(event, self._event_at)
        self._wake.set()

    def _take(self, event: Event, at: float) -> None:
        if isinstance(event, Failed):
            return
        if isinstance(event, Draft):
            self._pending = event, at - self._started
            self._dirty = True
            return
        self._fresh.add(event, self._doubt)
        if isinstance(event, Committed):
            self._settle(self._state.committed(event.canvas))
        elif isinstance(event, Finished):
            self._settle(FrameState())

    def _take_waiting(self, now: float) -> None:
        """The next event that waits, if the one before has been seen for long enough."""
        while self._waiting and now - self._shown_at >= self._pace:
            event, at = self._waiting.popleft()
            self._shown_at = now if isinstance(event, Draft) else self._shown_at
            self._take(event, at)

    def tick(self) -> float:
        """Draws what is due. Returns the seconds until it is worth asking again."""
        with self._lock:
            now = self._clock()
            self._take_waiting(now)
            if now - self._event_at >= _SLOW and now - self._drawn_at >= _SLOW:
                self._show_time(now)
            if self._dirty and now - self._drawn_at >= INTERVAL:
                self._draw()
            busy = self._dirty or self._waiting
            return max(INTERVAL - (now - self._drawn_at), 0.005) if busy else _SLOW

    def __enter__(self) -> LiveCanvas:
        self._open, self._dirty = True, True
        self._screen.open()
        self._painter = threading.Thread(target=self._paint_on, name="canvaslm-view", daemon=True)
        self._painter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(aborted=kind is not None)

    def close(self, *, aborted: bool = False) -> None:
        """Ends the view: prints what is settled, or, when `aborted`, leaves the last draft standing.

        What waits is shown first, at its pace; Ctrl-C skips it.
        """
        with contextlib.suppress(KeyboardInterrupt):
            while self._waiting and not aborted and self._painter is not None:
                time.sleep(INTERVAL)
        self._open = False
        self._wake.set()
        if self._painter is not None:
            self._painter.join(timeout=2)
        with self._lock:
            try:
                while self._waiting:
                    self._take(*self._waiting.popleft())
                self._leave_draft() if aborted and (
                    self._state.cells or self._pending
                ) else self._print_rest()
            finally:
                self._screen.close()

    def resized(self) -> None:
        """The terminal has a new size: the next tick draws, whatever the events do."""
        self._dirty = True
        self._wake.set()

    # -- what the painter does -------------------------------------------------------------------------------

    def _paint_on(self) -> None:
        wait = 0.0
        while self._open:
            self._wake.wait(wait)
            self._wake.clear()
            with contextlib.suppress(OSError, ValueError):  # a closed terminal: the caller will notice
                wait = self.tick()
            if (self._dirty or self._waiting) and self._open:
                time.sleep(min(wait, INTERVAL))
                wait = 0.0

    def _draw(self) -> None:
        self._screen.draw(self._frame())
        self._drawn_at, self._dirty = self._clock(), False

    def _frame(self) -> list[Line]:
        width, height = self._screen.size()
        self._use_pending()
        self._state = self._state.fitted(max(width, 4))
        able = self._screen.able
        return render(self._state, width, height, able.colors > 0, able.unicode)

    def _use_pending(self) -> None:
        if self._pending is not None:
            draft, elapsed = self._pending
            self._state = self._state.drafted(draft, self._vocabulary, self._ends, elapsed)
            self._pending = None

    def _show_time(self, now: float) -> None:
        """On a slow machine the seconds go on between steps, so that nobody thinks it hangs."""
        self._use_pending()
        elapsed, status = now - self._started, self._state.status
        if status is not None and not self._state.note:
            self._state = replace(self._state, status=replace(status, elapsed=elapsed))
        else:
            note = self._state.note.split(" · ")[0]
            self._state = replace(self._state, note=f"{note} · {elapsed:.0f} s")
        self._dirty = True

    # -- settled text ----------------------------------------------------------------------------------------

    def _settle(self, state: FrameState) -> None:
        """Prints all whole lines of what is settled; the rest stays as the tail that
        the next canvas continues."""
        fresh, self._fresh = self._fresh, Fresh()
        tail, self._pending = self._tail, None
        if fresh.thinking:
            tail.add(visible(fresh.thinking, tabs=False), _THOUGHT)
            self._thinking = True
        if fresh.text or fresh.tool_calls:
            if self._thinking:
                tail.add("\n\n", _THOUGHT)
                self._thinking = False
            for text, level in fresh.text:
                for part, style in doubt_parts(visible(text, tabs=False), level, self._screen.able):
                    tail.add(part, style)
        lines = tail.lines()
        for call in fresh.tool_calls:
            lead = "\n" if tail.text else ""
            tail.add(f"{lead}{visible(call_line(call))}", Style())
        if lines := lines + tail.lines():
            self._screen.write_above(*lines)
        self._state = replace(state, tail=tail.text)
        self._dirty = True

    def _print_rest(self) -> None:
        self._screen.write_above(*self._tail.rest())
        self._state = FrameState()

    def _leave_draft(self) -> None:
        """An answer cut short: its draft stays, without the status line."""
        self._screen.draw(self._frame()[:-1])
        self._screen.leave()


@contextlib.contextmanager
def terminal_signals(live: LiveCanvas, screen: Screen) -> Iterator[None]:
    """While it lasts: a resize redraws, Ctrl-Z and a polite kill give the terminal back first.

    Only the main thread can set signal handlers; elsewhere, and where a signal does
    not exist, nothing happens.
    """

    def resize(number: int, frame: FrameType | None) -> None:
        live.resized()

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def stop(number: int, frame: FrameType | None) -> None:
        screen.leave()
        screen.close()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns once the shell says `fg`
        signal.signal(number, stop)
        screen.open()
        live.resized()

    wanted = {"SIGWINCH": resize, "SIGTERM": end, "SIGHUP": end, "SIGTSTP": stop}
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name, handler in wanted.items():
            if number := getattr(signal, name, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["INTERVAL", "Fresh", "LiveCanvas", "terminal_signals"]
