"""`canvaslm`: finds a command by name, runs it, and turns every failure into one line and an exit code.

A command is one line in `COMMANDS`. Its module is imported when it is called, so that `canvaslm --help` is
quick and imports no torch; a command whose module is not there is not listed.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import CanvasError, OutOfMemory, UsageError
from .options import translated, wants_debug
from .streams import open_streams, settle_output


@dataclass(frozen=True)
class Entry:
    """Where a command lives: its module, the function in it, one line of help, and the extra it needs."""

    module: str
    function: str
    help: str
    extra: str | None = None


COMMANDS = {
    "run": Entry("canvaslm.cli.run", "command", "Write one answer, live on a terminal."),
    "fill": Entry("canvaslm.cli.fill", "command", "Fill the holes of a text."),
    "edit": Entry("canvaslm.cli.edit", "command", "Write lines of a file anew, and nothing else."),
    "decide": Entry("canvaslm.cli.decide", "command", "Answer questions about a text with probabilities."),
    "calibrate": Entry(
        "canvaslm.cli.calibrate", "command", "Fit the temperatures of decisions to known answers."
    ),
    "score": Entry("canvaslm.cli.score", "command", "Tell how probable a model finds given texts."),
    "chat": Entry("canvaslm.cli.chat", "command", "Talk with a model."),
    "show": Entry("canvaslm.cli.show", "command", "Show a model's architecture, sizes and defaults."),
    "train": Entry("canvaslm.cli.train", "command", "Train or fine-tune a model from a TOML file."),
    "finetune": Entry("canvaslm.cli.finetune", "command", "Train an adapter (LoRA) on chats."),
    "eval": Entry("canvaslm.cli.eval", "command", "Measure a model on an eval."),
    "convert": Entry("canvaslm.cli.convert", "command", "Convert a checkpoint between safetensors and GGUF."),
    "adapter": Entry("canvaslm.cli.adapter", "command", "Show, merge or convert an adapter (LoRA)."),
    "quantize": Entry("canvaslm.cli.quantize", "command", "Make a checkpoint smaller."),
    "synth": Entry(
        "canvaslm.cli.synth", "command", "Write a checkpoint of random weights for tests and benches."
    ),
    "pack": Entry("canvaslm.cli.pack", "command", "Repack a GGUF file so that it opens faster."),
    "bench": Entry(
        "canvaslm.cli.bench",
        "command",
        "Measure how fast a model or a server answers, and where the time goes.",
    ),
    "serve": Entry("canvaslm.cli.serve", "command", "Serve a model over HTTP.", "server"),
}

_SETTINGS = {"help_option_names": ["-h", "--help"]}

_EPILOG = """\
Examples:
  canvaslm run                                      the demo model solves a Sudoku
  canvaslm run -p "Reverse the word: canvas"
  canvaslm chat -m org/name:Q4_K_M --thinking
  canvaslm show model.gguf

Every flag can be set by an environment variable: CANVASLM_ and its name, as in CANVASLM_SEED=7.
`canvaslm COMMAND --help` tells more."""


class Command(TyperCommand):
    """A command whose help keeps the line breaks of its docstring and groups flags under headings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads llama.cpp's flag names as well as ours."""
        return super().parse_args(ctx, translated(args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Plain text that reads the same in a pipe, a narrow terminal and a screen reader."""
        self.format_usage(ctx, formatter)
        formatter.write(f"\n{self.help or ''}\n")
        for title, rows in flag_groups(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(rows)


def flag_groups(command: Any, ctx: typer.Context) -> dict[str, list[tuple[str, str]]]:
    """Heading -> (names, help) of a command's arguments and flags, in the order of its signature."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None and param.param_type_name == "argument":
            record = (param.make_metavar(ctx), getattr(param, "help", "") or "")
        if record is not None:
            default = "Arguments" if param.param_type_name == "argument" else "Options"
            groups.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(record)
    return groups


class Commands(TyperGroup):
    """Lists the table; imports a command's module only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands whose module exists."""
        return [name for name, entry in COMMANDS.items() if find_spec(entry.module)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the line of help; None for an unknown name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None or not find_spec(entry.module):
            return None
        return TyperCommand(name=cmd_name, help=entry.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself. `run -cnv` is how llama.cpp's users ask for `chat`."""
        name, rest = args[0], args[1:]
        if name == "run" and (asked := {"-cnv", "--conversation"} & set(rest)):
            name, rest = "chat", [argument for argument in rest if argument not in asked]
        super().resolve_command(ctx, [name, *rest])  # the error for an unknown name
        return name, load_command(name), rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, commands, flags, examples."""
        self.format_usage(ctx, formatter)
        formatter.write(f"\n{self.help}\n")
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])
        with formatter.section("Options"):
            formatter.write_dl([row for param in self.get_params(ctx) if (row := param.get_help_record(ctx))])
        formatter.write(f"\n{_EPILOG}\n")


def load_command(name: str) -> Any:
    """Imports the module of a command and builds its parser. Raises UsageError where a package is missing."""
    entry = COMMANDS[name]
    try:
        function = getattr(importlib.import_module(entry.module), entry.function)
    except ModuleNotFoundError as error:
        if entry.extra is None or (error.name or "").startswith("canvaslm"):
            raise
        raise UsageError(
            f"`canvaslm {name}` needs the package {error.name}: pip install 'canvaslm[{entry.extra}]'"
        ) from error
    app = typer.Typer(add_completion=False)
    app.command(name, cls=Command, context_settings=_SETTINGS)(function)
    command = typer.main.get_command(app)
    name_variables(command)
    return command


def name_variables(command: Any) -> None:
    """Gives every flag its environment variable: CANVASLM_ and its first long name in capitals."""
    for param in command.params:
        if param.param_type_name == "option" and param.envvar is None:
            names = [name for name in param.opts if name.startswith("--")]
            if names and names[0] != "--help":
                param.envvar = "CANVASLM_" + names[0].strip("-").replace("-", "_").upper()
            param.show_envvar = False


app = typer.Typer(cls=Commands, add_completion=True, rich_markup_mode=None, context_settings=_SETTINGS)


def _show_version(wanted: bool) -> None:
    if wanted:
        from ..version import __version__

        print(f"canvaslm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def canvaslm(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", "-V", is_eager=True, callback=_show_version, help="Print the version."
    ),
) -> None:
    """Run, serve, edit with, study and fine-tune block-diffusion language models."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """The `canvaslm` program: returns its exit code. See `errors` for the codes."""
    open_streams()
    try:
        command = typer.main.get_command(app)
        result = command.main(
            args=None if arguments is None else list(arguments), prog_name="canvaslm", standalone_mode=False
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SystemExit as ended:
        settle_output()
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        return report(error)


def report(error: BaseException) -> int:
    """Says on standard error what went wrong, in one line where it can, and returns the exit code."""
    if wants_debug() and not isinstance(error, CanvasError | KeyboardInterrupt | typer.Abort):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130
    settle_output()
    if isinstance(error, BrokenPipeError):
        return 1
    message, code = explained(error)
    from .output import log

    log(f"canvaslm: error: {message}")
    return code


def explained(error: BaseException) -> tuple[str, int]:
    """The message and the exit code of an error."""
    if isinstance(error, CanvasError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's usage errors, which have no stable public base class
        return _usage_message(error), 2
    if isinstance(error, MemoryError) or _is_torch_memory(error):
        return "out of memory: try a smaller model, a shorter context or fewer rows", OutOfMemory.exit_code
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror or error}", 3 if isinstance(
            error, FileNotFoundError
        ) else 1
    hint = "" if wants_debug() else " (run with CANVASLM_DEBUG=1 for the traceback)"
    first = (str(error).splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first}{hint}", 1


def _usage_message(error: Any) -> str:
    message = " ".join(str(error.format_message()).split()).rstrip(".")
    ctx = getattr(error, "ctx", None)
    return f"{message}; see `{ctx.command_path if ctx else 'canvaslm'} --help`"


def _is_torch_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


__all__ = [
    "COMMANDS",
    "Command",
    "Commands",
    "Entry",
    "app",
    "canvaslm",
    "explained",
    "load_command",
    "main",
    "report",
]
