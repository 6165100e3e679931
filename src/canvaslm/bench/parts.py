"""Where the time of a pass goes: hooks on the modules of a model, there only while measuring.

Time belongs to the innermost part that is open, so parts add up to the whole by construction, and what
no hook covers shows as `rest`. Parts are recognised by what the model is made of (a layer's projections,
its dense MLP, its experts, the attention methods of a context, `predict`) and, inside these, by the
native kernels whose purpose is plain; so the same code measures plain and packed models. Nothing in the
product knows of this file.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..engine import Engine
from ..model import Model
from ..ops.cpu import loader
from .arithmetic import (
    ATTENTION,
    EXPERTS,
    GLUE,
    HEAD,
    PARTS,
    PROJECTIONS,
    REST,
    SELF,
    work_of,
)

DENOISE, ENCODE = "denoise", "encode"
Seconds = dict[str, float]

# Functions outside the model, found by name where the engine calls them.
_FUNCTIONS = (
    ("canvaslm.engine.runner", "predict", HEAD),
    ("canvaslm.engine.runner", "draws_of", HEAD),
    ("canvaslm.engine.engine", "advance", HEAD),
)
# Native kernels that do one thing only.
_KERNELS = {
    "canvas_attention": ATTENTION,
    "canvas_head": HEAD,
    "canvas_soft": SELF,
    "canvas_norm_rope": GLUE,
    "canvas_rms_norm": GLUE,
    "canvas_join": GLUE,
    "canvas_route": GLUE,
    "canvas_gather": GLUE,
}
# Native kernels with several callers: they belong to the part that is open; these are for when none is.
_SHARED_KERNELS = {"canvas_matmul": PROJECTIONS, "canvas_experts": EXPERTS}
_CONTEXT_METHODS = ("append", "encode_attention", "denoise_attention")


class PartClock:
    """Charges time to the innermost open part, in one of two phases. `now` tells the time in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.begin()

    def begin(self) -> None:
        """Forgets all, and starts charging `rest`."""
        self.seconds: dict[str, Seconds] = {phase: dict.fromkeys(PARTS, 0.0) for phase in (DENOISE, ENCODE)}
        self._open, self._phase, self._since = [REST], DENOISE, self._now()

    def end(self) -> dict[str, Seconds]:
        """Phase -> part -> seconds since `begin`."""
        self._charge()
        return self.seconds

    @property
    def current(self) -> str:
        """The part that is being charged."""
        return self._open[-1]

    def enter(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._charge()
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._charge()
            self._phase = before

    def _charge(self) -> None:
        now = self._now()
        self.seconds[self._phase][self._open[-1]] += now - self._since
        self._since = now


class _SoftProducts(TorchFunctionMode):
    """Inside plain `predict`: a matrix product that is no `linear` multiplies
    probabilities with the embedding."""

    _NAMES = frozenset({"matmul", "__matmul__", "mm", "addmm", "addmm_", "bmm", "baddbmm"})

    def __init__(self, clock: PartClock) -> None:
        super().__init__()
        self._clock = clock

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in self._NAMES:
            return func(*args, **(kwargs or {}))
        with self._clock.part(SELF):
            return func(*args, **(kwargs or {}))


class Instrument:
    """While entered (as often as one likes), `clock` sees every part of what an engine runs. `notes` names
    what was not found to measure.

    On a GPU every border between two parts waits for the device: the sum is then longer
    than an unmeasured step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._model = engine, engine.runner.model
        self.clock = PartClock(clock_of(engine.runner.device))
        self.notes: list[str] = []
        self._undo = ExitStack()

    def __enter__(self) -> Instrument:
        self.notes.clear()
        try:
            self._install()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _install(self) -> None:
        for module, part in parts_of(self._model):
            self._hook(module, part)
        self._replace(self._model, "forward", self._with_context(self._model.forward))
        runner = self._engine.runner
        self._replace(runner, "run", self._timed_phase(runner.run))
        for where, name, part in _FUNCTIONS:
            self._function(where, name, part)
        self._kernels()

    def _hook(self, module: nn.Module, part: str) -> None:
        enter = module.register_forward_pre_hook(lambda *_: self.clock.enter(part))
        leave = module.register_forward_hook(lambda *_: self.clock.leave(), always_call=True)
        self._undo.callback(enter.remove)
        self._undo.callback(leave.remove)

    def _replace(self, owner: Any, name: str, made: Any) -> None:
        """Sets an attribute until the end of the measurement."""
        if name in vars(owner):
            self._undo.callback(setattr, owner, name, vars(owner)[name])
        else:
            self._undo.callback(delattr, owner, name)
        setattr(owner, name, made)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.clock.part(part):
                return function(*args, **kwargs)

        return timed

    def _timed_phase(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A runner's `run`: encoding is the passes that do nothing else."""

        @functools.wraps(function)
        def timed(rows: list[Any]) -> Any:
            with self.clock.phase(DENOISE if is_denoising(rows) else ENCODE):
                return function(rows)

        return timed

    def _with_context(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A model's `forward`, the methods of the context it is handed timed as attention."""

        @functools.wraps(function)
        def timed(tokens: Any, positions: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
            for name in _CONTEXT_METHODS:
                method = getattr(context, name, None)
                if method is not None and name not in vars(context):
                    setattr(context, name, self._timed(method, ATTENTION))
            with self.clock.part(GLUE):
                return function(tokens, positions, context, *args, **kwargs)

        return timed

    def _function(self, where: str, name: str, part: str) -> None:
        module = importlib.import_module(where)
        function = getattr(module, name, None)
        if function is None:
            self.notes.append(f"{where}.{name} is not there: its time is in {REST}")
            return
        timed = self._timed(function, part)
        if name == "predict":
            timed = self._timed(self._splitting_soft(function), part)
        self._replace(module, name, timed)

    def _splitting_soft(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def split(*args: Any, **kwargs: Any) -> Any:
            with _SoftProducts(self.clock):
                return function(*args, **kwargs)

        return split

    def _kernels(self) -> None:
        library = native_library()
        if library is None:
            return
        for name, part in (_KERNELS | _SHARED_KERNELS).items():
            kernel = getattr(library, name, None)
            if kernel is not None:
                timed = self._shared(kernel, part) if name in _SHARED_KERNELS else self._timed(kernel, part)
                self._replace(library, name, timed)

    def _shared(self, kernel: Callable[..., Any], fallback: str) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            part = fallback if self.clock.current in (GLUE, REST) else self.clock.current
            with self.clock.part(part):
                return kernel(*args)

        return timed


def is_denoising(rows: list[Any]) -> bool:
    """Whether a pass over these rows of a runner denoises anything."""
    return any(row.denoise for row in rows)


def parts_of(model: Model) -> Iterator[tuple[nn.Module, str]]:
    """The modules to watch and the part each is; modules inside them belong to them."""
    if model.self_conditioning is not None:
        yield model.self_conditioning, SELF
    for layer in model.layers:
        yield layer, GLUE
    for module, part in work_of(model.config).modules(model):
        if part != GLUE:
            yield module, part


def native_library() -> Any | None:
    """The compiled kernels if something has loaded them already; asking `available()` might compile them."""
    return getattr(loader, "_loaded", None)


def clock_of(device: torch.device) -> Callable[[], float]:
    """The time in seconds, after all that was started on the device is done."""
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


__all__ = [
    "DENOISE",
    "ENCODE",
    "Instrument",
    "PartClock",
    "Seconds",
    "clock_of",
    "is_denoising",
    "native_library",
    "parts_of",
]
