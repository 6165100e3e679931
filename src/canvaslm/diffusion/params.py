"""The sampling parameters: one table, from which `Params`, its checks, the command line's flags, the server's
fields, the table in docs/sampling.md and `canvaslm show` are made. Imports no torch.

To add a parameter, add a line to the class `Params` and read `params.NAME` where it counts; `python -m
canvaslm.cli.docs` then writes options.py, which type checkers read, and the pages of docs/. Names are those
of `generation_config.json`. Entropies are in nats.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from ..errors import UsageError

NO_LIMIT = -1


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """What is known about one sampling parameter.

    `kind` is bool, int, float or str. `low` and `high` bound numbers, both inclusive; with `unlimited`, -1 is
    taken besides and means no limit. `choices` are all texts there are, `old_choices` names that some had
    before. In `help`, {name} stands for another parameter. `presets`: preset -> the value it sets. `flags`:
    further names on the command line, and `llama_cpp` those that llama.cpp's programs have. `stored`: it may
    be set at the top of `generation_config.json`; `gguf` is the key of the same in GGUF files.
    """

    name: str = ""
    kind: type = str
    default: Any = None
    help: str = ""
    low: float | None = None
    high: float | None = None
    unlimited: bool = False
    unit: str = ""
    choices: tuple[str, ...] = ()
    old_choices: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    llama_cpp: tuple[str, ...] = ()
    stored: bool = False
    gguf: str = ""

    def explained(self, spelt: Callable[[str], str] = str) -> str:
        """The help, with names of other parameters `spelt` as the reader writes them."""
        return self.help.format_map({name: spelt(name) for name in PARAMETERS})

    def current(self, value: Any) -> Any:
        """The value, under its present name if it is an old one."""
        return self.old_choices.get(value, value) if isinstance(value, str) else value

    def check(self, value: Any) -> None:
        """Raises UsageError if the parameter cannot have this value."""
        if value is None and self.default is None:
            return
        if self.choices:
            if self.current(value) not in self.choices:
                known = ", ".join(self.choices)
                raise UsageError(f"unknown {self.name} {value!r}: choose one of {known}", self.name)
        elif not self._has_kind(value):
            raise UsageError(f"{self.name} should be {self.wanted}, found {value!r}", self.name)
        elif self.unlimited and value == NO_LIMIT:
            return
        elif self.low is not None and self.high is not None and not self.low <= value <= self.high:
            raise UsageError(f"{self.name} = {value} is out of range: {self.range}", self.name)

    def read(self, text: str) -> Any:
        """The value that a text stands for, as on the command line. Raises UsageError if there is none."""
        try:
            value = _TRUTHS[text.strip().lower()] if self.kind is bool else self.kind(text)
        except (ValueError, KeyError):
            raise UsageError(f"should be {self.wanted}", self.name) from None
        self.check(value)
        return self.current(value)

    @property
    def wanted(self) -> str:
        """What a value should be, in words."""
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        return kinds.get(self.kind, f"one of {', '.join(self.choices)}")

    def _has_kind(self, value: Any) -> bool:
        """Python counts truth values among the whole numbers; here they are none."""
        if isinstance(value, bool):
            return self.kind is bool
        return isinstance(value, (int, float) if self.kind is float else self.kind)

    @property
    def range(self) -> str:
        """Smallest and largest value in words: "0 to 100"; empty for what is no number."""
        if self.low is None or self.high is None:
            return ""
        return f"{plain(self.low)} to {plain(self.high)}{f', or {NO_LIMIT}' if self.unlimited else ''}"

    @property
    def least(self) -> float | None:
        """The smallest number that it takes; with `unlimited`, not all between this and `low`."""
        return NO_LIMIT if self.unlimited else self.low


_TRUTHS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off"), False),
}


def plain(number: float) -> str:
    """A number as people write it: whole ones whole."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def parameter(default: Any, help: str, **facts: Any) -> Any:
    """A line of the table: a field of the dataclass `Params`. Facts are fields of `Parameter`."""
    return field(default=default, metadata={"about": Parameter(default=default, help=help, **facts)})


@dataclass(frozen=True)
class Params:
    """Sampling parameters of one request, and the table of them. `check_params` says whether they can be.

    The order is that of help and documentation.

    >>> canvaslm.Params(max_new_tokens=64, temperature=0).max_denoising_steps
    48
    """

    max_new_tokens: int = parameter(
        256, "Tokens that the answer may have; it is written in whole canvases and then cut. "
        "-1: as many as the context holds.",
        low=1, high=2**24, unlimited=True, unit="tokens", flags=("-n",),
        llama_cpp=("--n-predict", "--predict"), stored=True,
    )  # fmt: skip
    canvas_length: int = parameter(
        0, "Places of a canvas, at least 16; 0: as many as the model has. A short answer need not pay for "
        "them all.",
        low=0, high=65_536, unit="places",
    )  # fmt: skip
    min_new_tokens: int = parameter(
        0, "Tokens that the answer has at least: no end of turn comes before.",
        low=0, high=2**24, unit="tokens", stored=True,
    )  # fmt: skip
    thinking_budget: int = parameter(
        NO_LIMIT, "Tokens that the model may think before its thought is closed. -1: no limit.",
        low=0, high=2**24, unlimited=True, unit="tokens",
    )  # fmt: skip
    retry_empty: bool = parameter(
        True,
        "An answer that ends before it says anything goes on once, with the end of turn forbidden at its "
        "first place.",
    )
    stop_on_repetition: bool = parameter(
        False, "End an answer whose last two canvases repeat one text; it is reported in any case."
    )
    repair: int = parameter(
        0, "Where a canvas has not the form that the answer must have: how often it is denoised again, its "
        "start given in that form, before it is bent to it.",
        low=0, high=16, unit="canvases",
    )  # fmt: skip
    mask: str = parameter(
        "off", "Where an answer must have a form: denoise lets each place of a canvas take, at every step, "
        "only tokens that a text of the form can have there.",
        choices=("off", "denoise"),
    )  # fmt: skip
    seed: int | None = parameter(
        None, "The same seed gives the same answer. -1, or none: a random one, which the answer names.",
        low=-1, high=2**63 - 1, flags=("-s",),
    )  # fmt: skip
    max_denoising_steps: int = parameter(
        48, "Denoise steps that a canvas may take.",
        low=1, high=10_000, unit="steps", presets={"quality": 48, "fast": 16},
        flags=("--steps",), llama_cpp=("--diffusion-steps", "--diffusion-eb-max-steps"),
        stored=True, gguf="diffusion.eb_max_steps",
    )  # fmt: skip
    temperature: float = parameter(
        1.0, "Scales the schedule from {t_max} to {t_min}; 0 takes the likeliest token.",
        low=0, high=100, flags=("--temp",), presets={"causal": 0.0},
    )  # fmt: skip
    t_max: float = parameter(
        0.8, "Temperature of a canvas's first step.",
        low=1e-3, high=100, llama_cpp=("--diffusion-eb-t-max",), stored=True, gguf="diffusion.eb_t_max",
    )  # fmt: skip
    t_min: float = parameter(
        0.4, "Temperature of a canvas's last step.",
        low=1e-3, high=100, llama_cpp=("--diffusion-eb-t-min",), stored=True, gguf="diffusion.eb_t_min",
    )  # fmt: skip
    top_k: int = parameter(
        0, "Likeliest tokens that a place is sampled from and conditioned on; 0: all.",
        low=0, high=1_000_000, unit="tokens",
    )  # fmt: skip
    top_k_start: int = parameter(
        0, "The top-k of a canvas's first step, falling to {top_k_end}; the two win over {top_k}. 0: off.",
        low=0, high=1_000_000, unit="tokens",
    )  # fmt: skip
    top_k_end: int = parameter(
        0, "The top-k of a canvas's last step.",
        low=0, high=1_000_000, unit="tokens",
    )  # fmt: skip
    top_k_tail_correction: bool = parameter(
        False, "With a top-k: judge how certain a place is by all tokens, not by those kept."
    )
    sampler: str = parameter(
        "entropy_bound", "Which sampled tokens a step accepts.",
        choices=("entropy_bound", "probability_threshold", "ancestral"),
        old_choices={"confidence_threshold": "probability_threshold"},
    )  # fmt: skip
    entropy_bound: float = parameter(
        0.1, "Nats accepted a step (sampler entropy_bound); higher is faster and rougher.",
        low=0, high=1_000_000, unit="nats", llama_cpp=("--diffusion-eb-entropy-bound",),
    )  # fmt: skip
    accept_threshold: float = parameter(
        0.9, "Probability from which a token is accepted (sampler probability_threshold).",
        low=0, high=1,
    )  # fmt: skip
    stability_threshold: int = parameter(
        1, "Steps that a draft must stay the same before its canvas may end early.",
        low=0, high=1_000, unit="steps", presets={"balanced": 0, "lean": 0, "fast": 0}, stored=True,
        gguf="diffusion.eb_stability_threshold",
    )  # fmt: skip
    confidence_threshold: float = parameter(
        0.005, "Mean entropy, in nats, below which a canvas may end early.",
        low=0, high=1_000_000, unit="nats", llama_cpp=("--diffusion-eb-confidence",), stored=True,
        gguf="diffusion.eb_confidence_threshold",
    )  # fmt: skip
    # These are off by default: they leave the reference's algorithm.
    first_places: int = parameter(
        0, "Places that the first canvas begins with, at least 16; it has all of them as soon as a draft "
        "does not end well within. 0: all, -1: half.",
        low=0, high=65_536, unlimited=True, unit="places", presets={"lean": -1},
    )  # fmt: skip
    keep_steps: int = parameter(
        0, "Leave a place out of all further steps once its guess was the same and certain for so many of "
        "them; its keys, values and guess stay. 2 is safe, 1 is not; 0: every step computes every place.",
        low=0, high=1_000, unit="steps", presets={"lean": 2},
    )  # fmt: skip
    keep_entropy: float = parameter(
        0.05, "Nats below which a place is certain for {keep_steps}.",
        low=0, high=1_000_000, unit="nats",
    )  # fmt: skip
    decoding: str = parameter(
        "diffusion", "How answers are written: on canvases, or one token after the other by the model's own "
        "causal reader (slow; {temperature} is then that of the distribution).",
        choices=("diffusion", "causal"), presets={"causal": "causal"},
    )  # fmt: skip
    top_p: float = parameter(
        1.0, "With {decoding} causal: sample from the likeliest tokens that have so much of the mass.",
        low=0, high=1,
    )  # fmt: skip
    verify: str = parameter(
        "off", "Let the causal reader judge each canvas, and go on behind what it accepts. checked: it "
        "refuses what it is sure to be wrong; threshold: see {verify_threshold}; greedy, sample: the answer "
        "is the one that {decoding} causal gives.",
        choices=("off", "checked", "threshold", "greedy", "sample"),
        presets={"draft": "threshold", "checked": "checked"},
    )  # fmt: skip
    verify_threshold: float = parameter(
        0.1, "With {verify} threshold: a token is accepted from this share of the likeliest one's "
        "probability on.",
        low=0, high=1,
    )  # fmt: skip
    verify_steps: int = parameter(
        0, "Denoise steps before a canvas is judged; 0: until it is done.",
        low=0, high=10_000, unit="steps", presets={"draft": 2},
    )  # fmt: skip
    eos_aware_stopping: bool = parameter(
        False, "Judge only what stands before the draft's first EOS when a canvas may end early."
    )
    settle_steps: int = parameter(
        0, "Send, and freeze, the start of a draft once it was certain for so many steps; "
        "0: whole canvases only.",
        low=0, high=1_000, unit="steps",
    )  # fmt: skip
    settle_entropy: float = parameter(
        0.05, "Nats below which a place is certain for {settle_steps}.",
        low=0, high=1_000_000, unit="nats",
    )  # fmt: skip


def _table() -> dict[str, Parameter]:
    kinds = {
        name: next(kind for kind in (*get_args(hint), hint) if kind is not NoneType)
        for name, hint in get_type_hints(Params).items()
    }
    return {f.name: replace(f.metadata["about"], name=f.name, kind=kinds[f.name]) for f in fields(Params)}


PARAMETERS: dict[str, Parameter] = _table()

# Named trade-offs for users who do not want to know more: preset -> the parameters it sets. `quality` is the
# reference; docs/speed.md has what the others cost and are worth.
PRESETS: dict[str, dict[str, Any]] = {}
for _about in PARAMETERS.values():
    for _preset, _value in _about.presets.items():
        PRESETS.setdefault(_preset, {})[_about.name] = _value


def check_params(params: Params) -> Params:
    """Returns params under present names, a negative seed turned into None.

    Raises UsageError naming the parameter at fault.
    """
    for name, about in PARAMETERS.items():
        about.check(getattr(params, name))
    _check_together(params)
    present = {name: about.current(getattr(params, name)) for name, about in PARAMETERS.items()}
    return replace(params, **{**present, "seed": None if params.seed == -1 else params.seed})


def _check_together(params: Params) -> None:
    """What several parameters must fulfil together."""
    if params.t_max < params.t_min:
        raise UsageError(f"t_max = {params.t_max} is below t_min = {params.t_min}", "t_max")
    if 0 <= params.max_new_tokens < params.min_new_tokens:
        raise UsageError(
            f"min_new_tokens = {params.min_new_tokens} is above max_new_tokens = {params.max_new_tokens}",
            "min_new_tokens",
        )
    if bool(params.top_k_start) != bool(params.top_k_end):
        given, missing = ("top_k_start", "top_k_end")[:: 1 if params.top_k_start else -1]
        raise UsageError(f"{given} = {getattr(params, given)} needs {missing} > 0 as well", missing)


def bounded(params: Params, context: int) -> Params:
    """The params with a number for "no limit": the tokens that the context has."""
    return params if params.max_new_tokens != NO_LIMIT else replace(params, max_new_tokens=context)


def check_preset(name: str) -> dict[str, Any]:
    """The parameters that a preset sets. Raises UsageError for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}", "preset")
    return PRESETS[name]


def old_names(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameter -> a note, for each of the values that is given under an old name."""
    return {
        name: f"the {name} {value} is called {PARAMETERS[name].current(value)} now; the old name works"
        for name, value in values.items()
        if name in PARAMETERS and isinstance(value, str) and value in PARAMETERS[name].old_choices
    }


def nearest(name: str, known: Iterable[str] = tuple(PARAMETERS)) -> str | None:
    """The known name that a misspelt one was most likely meant to be; None if there is none like it."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


__all__ = [
    "NO_LIMIT",
    "PARAMETERS",
    "PRESETS",
    "Parameter",
    "Params",
    "bounded",
    "check_params",
    "check_preset",
    "nearest",
    "old_names",
    "parameter",
    "plain",
]
