"""`canvaslm chat`: a conversation. The history keeps final answers, never old thoughts."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CanvasError, UsageError
from ..files import check_output, write_text
from ..types import Message, Reply
from .adapter_options import Adapting
from .given_text import argument_text
from .lines import Reader, line_reader, read_entry
from .options import Display, Doubt, Loading, Sampling, Talk, grouped
from .output import log, tokens_in
from .run import answer, log_figures, notes

if TYPE_CHECKING:
    from ..session import Session

_COMMAND = re.compile(r"/([a-z]+|\?)(?:\s+(.*))?", re.DOTALL)


@grouped
def command(
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The first message; then you type.")
    ] = None,
    doubt: Doubt = False,
    talk: Talk = Talk(),
    loading: Loading = Loading(),
    adapting: Adapting = Adapting(),
    sampling: Sampling = Sampling(),
    display: Display = Display(),
) -> None:
    """Talk with a model. /help lists what can be typed besides messages.

    Ctrl-C stops an answer, Ctrl-D leaves. A line that ends in a backslash goes on in the next. From a pipe,
    every line is a message and standard output holds the answers alone.

    Examples:
      canvaslm chat
      canvaslm chat -m model.gguf --system "Answer in one sentence." --thinking
      printf 'capital of France\\ncapital of Peru\\n' | canvaslm chat
    """
    display.checked()
    chosen, adapter = sampling.chosen(), adapting.chosen().get("adapter", [])
    prompt = None if prompt is None else argument_text(prompt, "--prompt")
    system = talk.message()
    session = loading.open(display.quiet, **adapting.loading())
    notes(session, display, chosen)
    chat = Chat(session, display, chosen, system, talk.thinking, doubt)
    chat.adapter, chat.adapter_scale = adapter, adapting.scale
    interactive = sys.stdin.isatty()
    if interactive:
        log(f"{session.name}: type a message; /help lists commands, Ctrl-D leaves")
    read = line_reader(os.environ, [f"/{name}" for name in COMMANDS])
    converse(chat, read, interactive, prompt)


@dataclass
class Chat:
    """The state of a conversation, and what can be done to it.

    `chosen`: sampling options as in `Sampling.chosen`. `asked`: the last message, answered or not.
    """

    session: Session
    display: Display
    chosen: dict[str, Any]
    system: str | None = None
    thinking: bool = False
    doubt: bool = False
    history: list[Message] = field(default_factory=list)
    asked: str | None = None
    retries: int = 0
    saved: set[Path] = field(default_factory=set)
    adapter: list[tuple[str, float]] = field(default_factory=list)
    adapter_scale: float = 1.0  # of what is chosen next

    def ask(self, text: str) -> Reply:
        """Sends a message and remembers the answer. A message that got none leaves
        no trace in the history."""
        self.asked, self.retries = text, 0
        return self._answer(text, self.chosen)

    def retry(self) -> Reply:
        """Asks the last message again, with another seed. Raises UsageError if there is none."""
        if self.asked is None:
            raise UsageError("there is nothing to retry yet")
        if self.history and self.history[-2].content == self.asked:
            del self.history[-2:]
        self.retries += 1
        seed = self.chosen.get("seed", -1)
        return self._answer(self.asked, {**self.chosen, "seed": seed if seed == -1 else seed + self.retries})

    def adapted(self) -> dict[str, Any]:
        """The option `adapter`, if there is one."""
        return {"adapter": self.adapter} if self.adapter else {}

    def _answer(self, text: str, chosen: dict[str, Any]) -> Reply:
        question = Message("user", text)
        reply = answer(
            self.session,
            [*self.history, question],
            self.display,
            system=self.system,
            thinking=self.thinking,
            **({"doubt": True} if self.doubt else {}),
            **self.adapted(),
            **chosen,
        )
        self.history += [question, Message("assistant", reply.text, reply.tool_calls)]
        return reply


def converse(chat: Chat, read: Reader, interactive: bool, first: str | None = None) -> None:
    """Reads and answers until the end of input. From a pipe, the first error ends it."""
    waiting = [first] if first else []
    while True:
        try:
            entry = waiting.pop() if waiting else read_entry(read, "> ", "… ")
            take(chat, entry)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            log("(Ctrl-D or /exit leaves)")
        except CanvasError as error:
            if not interactive:
                raise
            log(f"error: {error}")


def take(chat: Chat, entry: str) -> None:
    """One entry: a command or a message. Raises EOFError for /exit, CanvasError for what went wrong."""
    found = _COMMAND.fullmatch(entry.strip())
    if found:
        name = _ALIASES.get(found[1], found[1])
        if name not in COMMANDS:
            raise UsageError(f"there is no command /{found[1]}; /help lists them")
        COMMANDS[name].run(chat, (found[2] or "").strip())
    elif entry.strip():
        _report(chat, lambda: chat.ask(entry))


def _report(chat: Chat, act: Callable[[], Reply]) -> None:
    """Runs one answer, and says what became of it. Ctrl-C ends the answer only, where
    there is someone to go on."""
    try:
        reply = act()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        log("stopped; /retry asks again")
        return
    if not (reply.text.strip() or reply.tool_calls):
        log("note: the answer is empty; /retry asks again with another seed")
    if reply.finish_reason == "length":
        log(f"note: cut at {tokens_in(reply)}; a larger -n allows more")
    if not chat.display.quiet:
        log_figures(reply, chat.display, chat.doubt)


# -- what can be typed ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatCommand:
    """`arguments` and `help` are shown by /help."""

    arguments: str
    help: str
    run: Callable[[Chat, str], None]


def _help(chat: Chat, rest: str) -> None:
    for name, one in COMMANDS.items():
        log(f"  {f'/{name} {one.arguments}':<20} {one.help}")


def _clear(chat: Chat, rest: str) -> None:
    chat.history.clear()
    chat.asked = None
    log("the conversation is forgotten")


def _number(chat: Chat, name: str, shown: str, rest: str, least: int) -> None:
    if rest:
        if not re.fullmatch(r"-?\d{1,18}", rest) or int(rest) < least:
            raise UsageError(f"/{shown} takes a whole number from {least} on, not {rest!r}", name)
        chat.chosen[name] = int(rest)
    value = chat.chosen.get(name, getattr(chat.session.params, name))
    log(f"{shown}: {'random' if name == 'seed' and value in (None, -1) else value}")


def _seed(chat: Chat, rest: str) -> None:
    _number(chat, "seed", "seed", rest, -1)


def _steps(chat: Chat, rest: str) -> None:
    _number(chat, "max_denoising_steps", "steps", rest, 1)


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.system = None if rest == "none" else rest
    log(f"system message: {chat.system or 'none'}")


def _check_switch(name: str, rest: str) -> None:
    if rest not in ("", "on", "off"):
        raise UsageError(f"/{name} takes on or off, not {rest!r}", name)


def _thinking(chat: Chat, rest: str) -> None:
    _check_switch("thinking", rest)
    chat.thinking = rest == "on" if rest else chat.thinking
    log(f"thinking: {'on' if chat.thinking else 'off'}")


def _doubt(chat: Chat, rest: str) -> None:
    _check_switch("doubt", rest)
    chat.doubt = rest == "on" if rest else chat.doubt
    log(f"doubt: {'on' if chat.doubt else 'off'}")


def _adapter(chat: Chat, rest: str) -> None:
    adapters = chat.session.adapters
    if rest == "off":
        chat.adapter = []
    elif rest:
        adapters.use(rest)  # raises for one that there is not
        chat.adapter = [(rest, chat.adapter_scale)]
    told = ", ".join(name for name, _ in chat.adapter) or "off"
    log(f"adapter: {told} (there are: {', '.join(adapters.names) or 'none'})")


def _live(chat: Chat, rest: str) -> None:
    _check_switch("live", rest)
    if rest:
        chat.display = replace(chat.display, live=rest == "on")
    log(f"live: {'auto' if chat.display.live is None else 'on' if chat.display.live else 'off'}")


def _retry(chat: Chat, rest: str) -> None:
    _report(chat, chat.retry)


def _save(chat: Chat, rest: str) -> None:
    if not rest:
        raise UsageError("/save takes the name of a file: /save chat.md, or .json")
    path = Path(rest).expanduser()
    check_output(path, force=True)
    if os.path.lexists(path) and path.absolute() not in chat.saved:
        raise UsageError(f"{path} exists already; choose another name")
    write_text(path, as_document(chat) if path.suffix == ".json" else as_markdown(chat))
    chat.saved.add(path.absolute())
    log(f"saved {len(chat.history)} messages to {path}")


def _exit(chat: Chat, rest: str) -> None:
    raise EOFError


COMMANDS = {
    "help": ChatCommand("", "this list", _help),
    "clear": ChatCommand("", "forget the conversation", _clear),
    "retry": ChatCommand("", "ask the last message again, with another seed", _retry),
    "seed": ChatCommand("[N]", "show or set the seed; -1 is random", _seed),
    "steps": ChatCommand("[N]", "show or set the denoise steps of a canvas", _steps),
    "system": ChatCommand("[TEXT]", "show or set the system message; none removes it", _system),
    "thinking": ChatCommand("[on|off]", "whether the model thinks first", _thinking),
    "doubt": ChatCommand("[on|off]", "whether doubtful parts are marked", _doubt),
    "adapter": ChatCommand("[NAME|off]", "show or set the adapter that answers are written with", _adapter),
    "live": ChatCommand("[on|off]", "whether the canvas is drawn", _live),
    "save": ChatCommand("FILE", "write the conversation to a file: .json, else Markdown", _save),
    "exit": ChatCommand("", "leave, as Ctrl-D does", _exit),
}
_ALIASES = {"quit": "exit", "bye": "exit", "?": "help"}


def as_document(chat: Chat) -> str:
    """The conversation as JSON: the messages in the form that every chat API takes."""
    turns = [{"role": "system", "content": chat.system}] if chat.system else []
    turns += [{"role": message.role, "content": message.content} for message in chat.history]
    document = {"model": chat.session.name, "options": {**chat.chosen, **chat.adapted()}, "messages": turns}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def as_markdown(chat: Chat) -> str:
    """The conversation to read."""
    turns = [("system", chat.system)] if chat.system else []
    turns += [(message.role, message.content) for message in chat.history]
    return "\n".join(f"**{role}**\n\n{content}\n" for role, content in turns)


__all__ = ["COMMANDS", "Chat", "ChatCommand", "as_document", "as_markdown", "command", "converse", "take"]
