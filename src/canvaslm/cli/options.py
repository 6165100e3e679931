"""Flags that several commands share, each group a dataclass; names are those of `Params`.

    @grouped
    def command(sampling: Sampling, model: Annotated[...] = None): ...

typer sees the fields of a group as flags of their own, the function gets the group. Every flag can also be set by an
environment variable (see `main.name_variables`); a flag beats a variable, a variable the checkpoint's
`generation_config.json`, and that the default.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..session import Session

_MODEL, _SAMPLING, _DISPLAY = "Model", "Sampling", "Display"

# Flags of llama.cpp's diffusion programs -> ours. Read everywhere, not listed in the help.
LLAMA_CPP = {
    "--diffusion-visual": "--live",
    "--diffusion-steps": "--max-denoising-steps",
    "--diffusion-eb-max-steps": "--max-denoising-steps",
    "--diffusion-eb-t-max": "--t-max",
    "--diffusion-eb-t-min": "--t-min",
    "--diffusion-eb-entropy-bound": "--entropy-bound",
    "--diffusion-eb-confidence": "--confidence-threshold",
    "--n-predict": "--max-new-tokens",
    "--predict": "--max-new-tokens",
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
            help="float32, bfloat16 or int8: what keys and values are kept in (docs/formats.md). Without it: chosen for the model.",
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

    def open(self, quiet: bool = False) -> Session:
        """Loads the model; unless `quiet`, with a progress line on standard error if that is a terminal."""
        from .loading import open_session

        return open_session(self, quiet)


# Also flags of commands that have no others of `Sampling`.
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", min=0, metavar="N", rich_help_panel=_SAMPLING,
        help="Likeliest tokens that a place is sampled from; 0: all.",
    ),
]  # fmt: skip
TopKStart = Annotated[
    int | None,
    typer.Option(
        "--top-k-start", min=0, metavar="N", rich_help_panel=_SAMPLING,
        help="The top-k of a canvas's first step, falling to --top-k-end; the two win over --top-k. 0: off.",
    ),
]  # fmt: skip
TopKEnd = Annotated[
    int | None,
    typer.Option(
        "--top-k-end", min=0, metavar="N", rich_help_panel=_SAMPLING, help="The top-k of a canvas's last step."
    ),
]  # fmt: skip
TailCorrection = Annotated[
    bool | None,
    typer.Option(
        "--top-k-tail-correction/--no-top-k-tail-correction", rich_help_panel=_SAMPLING,
        help="With a top-k: judge how certain a place is by all tokens, not by those kept.",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Truncation:
    """The top-k alone, for commands whose other sampling parameters come from the checkpoint or from requests."""

    top_k: TopK = None
    top_k_start: TopKStart = None
    top_k_end: TopKEnd = None
    top_k_tail_correction: TailCorrection = None

    def chosen(self) -> dict[str, Any]:
        """What was set: fields of `Params`. Raises UsageError if they cannot be."""
        from ..diffusion import check_params
        from ..types import Params

        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        check_params(Params(**values))
        return values


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled; None leaves a parameter to the preset, then to the checkpoint."""

    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", metavar="NAME", rich_help_panel=_SAMPLING,
            help="fast (16 steps), balanced or quality (48 steps); single flags win over it.",
        ),
    ] = None  # fmt: skip
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", "-n", min=1, metavar="N", rich_help_panel=_SAMPLING,
            help="Tokens that the answer may have; it is written in whole canvases and then cut.",
        ),
    ] = None  # fmt: skip
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", "-s", min=-1, metavar="N", rich_help_panel=_SAMPLING,
            help="The same seed gives the same answer. -1, or none: random; it is printed.",
        ),
    ] = None  # fmt: skip
    max_denoising_steps: Annotated[
        int | None,
        typer.Option(
            "--max-denoising-steps", "--steps", min=1, metavar="N", rich_help_panel=_SAMPLING,
            help="Denoise steps that a canvas may take.",
        ),
    ] = None  # fmt: skip
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", "--temp", min=0.0, metavar="X", rich_help_panel=_SAMPLING,
            help="Scales the schedule from t-max to t-min; 0 takes the likeliest token.",
        ),
    ] = None  # fmt: skip
    t_max: Annotated[
        float | None,
        typer.Option(
            "--t-max", metavar="X", rich_help_panel=_SAMPLING, help="Temperature of a canvas's first step."
        ),
    ] = None
    t_min: Annotated[
        float | None,
        typer.Option(
            "--t-min", metavar="X", rich_help_panel=_SAMPLING, help="Temperature of a canvas's last step."
        ),
    ] = None
    top_k: TopK = None
    top_k_start: TopKStart = None
    top_k_end: TopKEnd = None
    top_k_tail_correction: TailCorrection = None
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler", metavar="NAME", rich_help_panel=_SAMPLING,
            help="entropy_bound, probability_threshold or ancestral.",
        ),
    ] = None  # fmt: skip
    entropy_bound: Annotated[
        float | None,
        typer.Option(
            "--entropy-bound",
            metavar="X",
            rich_help_panel=_SAMPLING,
            help="Nats accepted a step (sampler entropy_bound).",
        ),
    ] = None
    accept_threshold: Annotated[
        float | None,
        typer.Option(
            "--accept-threshold", metavar="X", rich_help_panel=_SAMPLING,
            help="Probability from which a token is accepted (sampler probability_threshold).",
        ),
    ] = None  # fmt: skip
    stability_threshold: Annotated[
        int | None,
        typer.Option(
            "--stability-threshold", metavar="N", rich_help_panel=_SAMPLING,
            help="Steps that a draft must stay the same before its canvas may end early.",
        ),
    ] = None  # fmt: skip
    confidence_threshold: Annotated[
        float | None,
        typer.Option(
            "--confidence-threshold", metavar="X", rich_help_panel=_SAMPLING,
            help="Mean entropy, in nats, below which a canvas may end early.",
        ),
    ] = None  # fmt: skip
    eos_aware_stopping: Annotated[
        bool | None,
        typer.Option(
            "--eos-aware-stopping/--no-eos-aware-stopping", rich_help_panel=_SAMPLING,
            help="Judge only what stands before the draft's end when a canvas may end early.",
        ),
    ] = None  # fmt: skip
    settle_steps: Annotated[
        int | None,
        typer.Option(
            "--settle-steps", metavar="N", rich_help_panel=_SAMPLING,
            help="Freeze and print the start of a draft once it was certain for N steps; 0: whole canvases only.",
        ),
    ] = None  # fmt: skip
    settle_entropy: Annotated[
        float | None,
        typer.Option(
            "--settle-entropy", metavar="X", rich_help_panel=_SAMPLING,
            help="Nats below which a place is certain for --settle-steps.",
        ),
    ] = None  # fmt: skip
    from_environment: frozenset[str] = field(default=frozenset(), metadata={"flag": False})

    def chosen(self) -> dict[str, Any]:
        """What was set: `preset` and fields of `Params`, as keyword arguments of `Session.stream`.

        A preset given as a flag beats single parameters that stand in the environment. Raises UsageError.
        """
        names = [f.name for f in fields(self) if f.metadata.get("flag", True)]
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.preset is not None and "preset" not in self.from_environment:
            ruled = self._preset()
            values = {k: v for k, v in values.items() if not (k in ruled and k in self.from_environment)}
        return values

    def _preset(self) -> Mapping[str, Any]:
        from ..diffusion import PRESETS

        if self.preset not in PRESETS:
            raise UsageError(f"unknown preset {self.preset!r}: choose one of {', '.join(PRESETS)}", "preset")
        return PRESETS[self.preset]


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
            help="Show every step for so long at least; the model is not slowed. Without it: 0, and 0.3 for the Sudoku.",
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
    "Display",
    "Loading",
    "Sampling",
    "Talk",
    "Truncation",
    "grouped",
    "translated",
    "wants_debug",
]
