"""Chooses how an answer is shown: a live canvas, plain text, or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..types import Event
from .live import LiveCanvas, terminal_signals
from .options import Display
from .output import PlainAnswer, Presenter
from .terminal import Abilities, Screen, abilities

if TYPE_CHECKING:
    from ..session import Session


class LiveAnswer:
    """The live canvas; where the answer itself goes elsewhere (`plain`), its text goes there too."""

    wants_drafts = True

    def __init__(self, live: LiveCanvas, plain: PlainAnswer | None) -> None:
        self._live, self._plain = live, plain

    def feed(self, event: Event) -> None:
        """Shows the event."""
        self._live.feed(event)
        if self._plain is not None:
            self._plain.feed(event)


class Silent:
    """Shows nothing."""

    def feed(self, event: Event) -> None:
        """Drops the event."""


@contextmanager
def presenter(
    session: Session, display: Display, silent: bool = False, doubt: bool = False
) -> Iterator[Presenter]:
    """What to feed the answer's events to. `silent`: the answer is printed by the caller (`--json`). `doubt`:
    doubtful parts are marked.

    With standard output piped, `--live` draws on standard error. Raises UsageError where
    it cannot be drawn at all.
    """
    piped = silent or not sys.stdout.isatty()
    stream = sys.stderr if piped else sys.stdout
    able = abilities(stream, os.environ, display.color)
    _check(display, able)
    live = able.live and (display.live if display.live is not None else not piped)
    own = able if not piped else abilities(sys.stdout, os.environ, display.color)
    plain = None if silent else PlainAnswer(sys.stdout, harmless=not piped, doubt=doubt, able=own)
    if not live:
        yield plain or Silent()
        return
    screen = Screen(stream, able)
    canvas = LiveCanvas(
        screen, session.tokenizer, session.eos_token_ids, pace=display.pace or 0.0, doubt=doubt
    )
    with terminal_signals(canvas, screen), canvas:
        yield LiveAnswer(canvas, plain if piped else None)


def _check(display: Display, able: Abilities) -> None:
    if display.live and not able.live:
        raise UsageError(
            "--live needs a terminal that can move its cursor (TERM is dumb, or output is piped)", "live"
        )


__all__ = ["LiveAnswer", "Silent", "presenter"]
