"""Flags that several commands share, each group a dataclass; those for sampling are made from the table.

    @grouped
    def command(sampling: Sampling, model: Annotated[...] = None): ...

typer sees the fields of a group as flags of their own, the function gets the group. Every flag can also be
set by an environment variable (see `main.name_variables`); a flag beats a variable, a variable the
checkpoint's `generation_config.json`, and that the default.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from ..diffusion.params import PARAMETERS, PRESETS, Parameter, Params, check_params, check_preset
from ..errors import UsageError
from .given_text import argument_text

if TYPE_CHECKING:
    from ..session import Session

_MODEL, _SAMPLING, _DISPLAY = "Model", "Sampling", "Display"
_METAVARS: Mapping[type, str] = {int: "N", float: "X", str: "NAME"}

Group = TypeVar("Group")


def _dashed(name: str) -> str:
    """The flag of a parameter."""
    return "--" + name.replace("_", "-")


# Flags of llama.cpp's diffusion programs -> ours. Read everywhere, not listed in the help.
LLAMA_CPP = {
    "--diffusion-visual": "--live",
    **{theirs: _dashed(about.name) for about in PARAMETERS.values() for theirs in about.llama_cpp},
    "--system-prompt": "--system",
    "-sys": "--system",
}
# Accepted and without effect: the context is always kept.
LLAMA_CPP_NOTHING = ("--diffusion-kv-cache", "--no-diffusion-kv-cache")


def translated(arguments: list[str]) -> list[str]:
    """The arguments with llama.cpp's names replaced by ours, up to `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours = []
    for argument in arguments[:end]:
        name, equals, value = argument.partition("=")
        if argument not in LLAMA_CPP_NOTHING:
            ours.append(LLAMA_CPP[name] + equals + value if name in LLAMA_CPP else argument)
    return ours + arguments[end:]


@dataclass(frozen=True)
class Loading:
    """Which model, and where it runs."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", rich_help_panel=_MODEL,
            help="A folder, a .safetensors or .gguf file, or a hub id. Without it: the demo model.",
        ),
    ] = None  # fmt: skip
    device: Annotated[
        str,
        typer.Option("--device", metavar="DEVICE", rich_help_panel=_MODEL, help="cpu, cuda, cuda:1, mps ..."),
    ] = "cpu"
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="TYPE", rich_help_panel=_MODEL,
            help="float32, bfloat16 or float16. Without it: chosen for model and device.",
        ),
    ] = None  # fmt: skip
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            "-t",
            min=1,
            metavar="N",
            rich_help_panel=_MODEL,
            help="CPU threads. Without it: all cores.",
        ),
    ] = None
    kv_type: Annotated[
        str | None,
        typer.Option(
            "--kv-type", metavar="TYPE", rich_help_panel=_MODEL,
            help=("float32, bfloat16 or int8: what keys and values are kept in (docs/formats.md). Without "
                "it: chosen for the model."),
        ),
    ] = None  # fmt: skip
    self_conditioning: Annotated[
        str,
        typer.Option(
            "--self-conditioning", metavar="MODE", rich_help_panel=_MODEL,
            help="auto, or exact: native kernels then leave no token out of the soft embedding.",
        ),
    ] = "auto"  # fmt: skip
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", rich_help_panel=_MODEL,
            help="Denoise row by row, where a device's results depend on how many rows run together.",
        ),
    ] = False  # fmt: skip

    def open(self, quiet: bool = False, **more: Any) -> Session:
        """Loads the model; unless `quiet`, with a progress line on standard error if that is a terminal.
        `more`: further options of `canvaslm.load`."""
        from .loading import open_session

        return open_session(self, quiet, **more)


def flag(about: Parameter) -> Any:
    """The type and the flag of a sampling parameter; None, its default, means that it was not set."""
    help = about.explained(_dashed)
    if about.choices:
        help = f"{help.rstrip('.')}: {_either(about.choices)}."
    negation = f"/--no-{_dashed(about.name)[2:]}" if about.kind is bool else ""
    option = typer.Option(
        _dashed(about.name) + negation, *about.flags, metavar=_METAVARS.get(about.kind), min=about.least,
        max=about.high, rich_help_panel=_SAMPLING, help=help, callback=checked(about),
    )  # fmt: skip
    return Annotated[about.kind | None, option]


def checked(about: Parameter) -> Callable[[Any], Any]:
    """What typer calls with a flag's value: refuses what is in the flag's range and no value all the same."""

    def check(value: Any) -> Any:
        if about.unlimited and value is not None:
            try:
                about.check(value)
            except UsageError as error:
                raise typer.BadParameter(str(error)) from None
        return value

    return check


def _either(names: Iterable[str]) -> str:
    """ "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _preset_help() -> str:
    """Each preset with what it sets: "fast (16 steps)"."""
    told = [
        f"{preset} ({', '.join(f'{name} {value}' for name, value in values.items())})"
        for preset, values in PRESETS.items()
    ]
    return f"{_either(told)}; single flags win over it."


def sampled(*names: str) -> Callable[[type[Group]], type[Group]]:
    """Makes a class a group of flags: its own fields, and one for each of the sampling parameters named."""

    def group(made: type[Group]) -> type[Group]:
        for name in names:
            made.__annotations__[name] = flag(PARAMETERS[name])
            setattr(made, name, None)
        return dataclass(frozen=True)(made)

    return group


@sampled("top_k", "top_k_start", "top_k_end", "top_k_tail_correction")
class Truncation:
    """The top-k alone, for commands whose other sampling parameters come from the
    checkpoint or from requests."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...

    def chosen(self) -> dict[str, Any]:
        """What was set: fields of `Params`. Raises UsageError if they cannot be."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        check_params(Params(**values))
        return values


@sampled(*PARAMETERS)
class Sampling:
    """How answers are sampled; None leaves a parameter to the preset, then to the checkpoint."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...

    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", rich_help_panel=_SAMPLING, help=_preset_help())
    ] = None
    from_environment: frozenset[str] = field(default=frozenset(), metadata={"flag": False})

    def chosen(self) -> dict[str, Any]:
        """What was set: `preset` and fields of `Params`, as keyword arguments of `Session.stream`.

        A preset given as a flag beats single parameters that stand in the environment. Raises UsageError.
        """
        given = {name: getattr(self, name) for name in ("preset", *PARAMETERS)}
        values = {name: value for name, value in given.items() if value is not None}
        if self.preset is not None and "preset" not in self.from_environment:
            ruled = check_preset(self.preset)
            values = {k: v for k, v in values.items() if not (k in ruled and k in self.from_environment)}
        return values


@dataclass(frozen=True)
class Talk:
    """What is put before the prompt."""

    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message.")] = None
    thinking: Annotated[
        bool,
        typer.Option(
            "--thinking/--no-thinking", show_default=False, help="Let the model think before it answers."
        ),
    ] = False

    def message(self) -> str | None:
        """The system message. Raises UsageError for one that is not UTF-8."""
        return None if self.system is None else argument_text(self.system, "--system")


Doubt = Annotated[
    bool,
    typer.Option(
        "--doubt", rich_help_panel=_DISPLAY,
        help="Mark what the causal reader, which knows all that stands before a token, would not have "
        "written: in yellow, orange and red, or as [?so], [??so] and [???so] where there is no colour.",
    ),
]  # fmt: skip

BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of", min=1, max=128, metavar="N",
        help="Write N answers side by side and show that of which the causal reader thinks best.",
    ),
]  # fmt: skip

RetryDoubtful = Annotated[
    bool, typer.Option("--retry-doubtful", help="Write doubtful parts once more; keep what is better.")
]


@dataclass(frozen=True)
class Display:
    """How it looks while an answer is written."""

    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--no-live", rich_help_panel=_DISPLAY,
            help="Draw the canvas while it denoises. Without it: if standard output is a terminal.",
        ),
    ] = None  # fmt: skip
    pace: Annotated[
        float | None,
        typer.Option(
            "--pace", metavar="SECONDS", min=0.0, max=10.0, rich_help_panel=_DISPLAY,
            help=("Show every step for so long at least; the model is not slowed. Without it: 0, and 0.3 "
                "for the Sudoku."),
        ),
    ] = None  # fmt: skip
    color: Annotated[
        str,
        typer.Option("--color", metavar="WHEN", rich_help_panel=_DISPLAY, help="auto, always or never."),
    ] = "auto"
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", rich_help_panel=_DISPLAY, help="No figures and notes on standard error."
        ),
    ] = False

    def checked(self) -> Display:
        """Itself. Raises UsageError for a `color` that does not exist."""
        if self.color not in ("auto", "always", "never"):
            raise UsageError(f"--color {self.color}: choose auto, always or never", "color")
        return self


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Makes the fields of every parameter that is a dataclass a flag of its own. Keyword arguments only."""
    hints = get_type_hints(function, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    flags: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        flags |= _flags(groups[name]) if name in groups else {name: (hints[name], parameter.default)}

    @functools.wraps(function)
    def command(ctx: typer.Context, **values: Any) -> None:
        found = _from_environment(ctx)
        packed = {name: _pack(group, values, found) for name, group in groups.items()}
        function(**packed, **values)

    own = {name: hint for name, (hint, _) in flags.items()}
    command.__annotations__ = {"ctx": typer.Context, **own, "return": None}
    command.__signature__ = _signature(flags)  # type: ignore[attr-defined]
    del command.__wrapped__  # typer would read the annotations of the function behind it
    return command


def _flags(group: type) -> dict[str, tuple[Any, Any]]:
    hints = get_type_hints(group, include_extras=True)
    return {f.name: (hints[f.name], f.default) for f in fields(group) if f.metadata.get("flag", True)}


def _pack(group: type, values: dict[str, Any], found: frozenset[str]) -> Any:
    own = {name: values.pop(name) for name in _flags(group)}
    if any(f.name == "from_environment" for f in fields(group)):
        own["from_environment"] = found
    return group(**own)


def _from_environment(ctx: typer.Context) -> frozenset[str]:
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return frozenset(name for name, source in sources.items() if source and source.name == "ENVIRONMENT")


def _signature(flags: Mapping[str, tuple[Any, Any]]) -> inspect.Signature:
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", kind, annotation=typer.Context)]
    parameters += [
        inspect.Parameter(name, kind, default=default, annotation=hint)
        for name, (hint, default) in flags.items()
    ]
    return inspect.Signature(parameters)


def wants_debug() -> bool:
    """Whether tracebacks are asked for."""
    return os.environ.get("CANVASLM_DEBUG", "") not in ("", "0")


__all__ = [
    "LLAMA_CPP",
    "BestOf",
    "Display",
    "Doubt",
    "Loading",
    "RetryDoubtful",
    "Sampling",
    "Talk",
    "Truncation",
    "checked",
    "flag",
    "grouped",
    "sampled",
    "translated",
    "wants_debug",
]
