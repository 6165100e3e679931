"""Lines that a person types: with editing and a history on a terminal, plain lines from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .given_text import input_line

Reader = Callable[[str], str]  # prompt -> line, without its newline; raises EOFError at the end


def line_reader(environment: Mapping[str, str], words: list[str]) -> Reader:
    """A reader for standard input. `words` complete with the tab key."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _piped
    if environment.get("TERM", "dumb") == "dumb":
        return input
    return _editing(environment, words)


def _piped(prompt: str) -> str:
    line = input_line()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _editing(environment: Mapping[str, str], words: list[str]) -> Reader:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    completer = WordCompleter(words, sentence=True)
    session: Any = PromptSession(
        history=_history(environment), completer=completer, complete_while_typing=False
    )
    return lambda prompt: str(session.prompt(prompt))


def _history(environment: Mapping[str, str]) -> Any:
    """What was typed in earlier chats, in a file that only its owner can read; in
    memory where none can be had."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path(environment)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def history_path(environment: Mapping[str, str]) -> Path:
    """`canvaslm/history` under XDG_STATE_HOME, by default ~/.local/state."""
    state = environment.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "canvaslm" / "history"


def read_entry(read: Reader, prompt: str, more: str) -> str:
    """One entry: a line that ends in a backslash goes on in the next. Raises
    EOFError where nothing is left."""
    lines = [read(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(read(more))
        except EOFError:
            break
    return "\n".join(lines)


__all__ = ["Reader", "history_path", "line_reader", "read_entry"]
