"""The training loop: full fine-tuning of a checkpoint, training from scratch, or training an adapter.

A step is a pure function of (weights, optimiser state, seed, step): data, block, time, noise and coin come
from the step's number. So a run that stops at a checkpoint and resumes there gives bit-identical weights, as
long as its schedule counts steps (a schedule that follows the clock is as exact as the clock).
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadModelFile, UsageError
from ..model.protocol import Model
from .checkpoint import RunProgress, checkpoints, load_checkpoint, save_checkpoint
from .data import Batch, Batcher, Source
from .fast import compile_objective
from .lora import Lora
from .objective import Objective, StepCounts
from .optim import Average, Optimizers, factor
from .preferences import Preferences
from .recompute import recompute_layers
from .report import Reporter, TrainingMetrics
from .settings import Settings, settings_to_dict

OBJECTIVES: dict[str, type[Objective]] = {"sft": Objective, "dpo": Preferences}
Export = Callable[[nn.Module], None]
After = Callable[["Trainer", Reporter], str | None]


@dataclass
class Tally:
    """Sums since the last report."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    examples: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, values: dict[str, float], tokens: int, examples: int) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps, self.tokens, self.examples = (
            self.steps + 1,
            self.tokens + tokens,
            self.examples + examples,
        )

    def mean(self, name: str) -> float:
        return self.sums.get(name, 0.0) / max(self.steps, 1)


class Trainer:
    """One run. `model` holds fp32 master weights; `export` is called with what is to be shipped, the model or
    the `Lora`, at every checkpoint. `trained`: what holds the weights that are trained."""

    def __init__(
        self, model: Model, source: Source, settings: Settings, *, export: Export | None = None
    ) -> None:
        if not model.config.eos_token_ids:
            raise UsageError(
                "model.config: config.json has no eos_token_id, which fills the last canvas",
                param="model.config",
            )
        run, data = settings.run, settings.data
        self.model, self.settings, self.export = model.train().to(run.device), settings, export
        self.folder = Path(run.folder)
        self.objective = OBJECTIVES[settings.objective.kind](model, settings.objective)
        if run.compile:
            compile_objective(self.objective)
        if run.recompute:
            recompute_layers(model)
        self.trained: nn.Module = self._lora() if settings.lora.rank else model
        self.optimizers = Optimizers(
            self.trained.named_parameters(), settings.optim, low_precision=run.autocast == "bf16"
        )
        self.average = Average(self.trained, settings.optim.ema) if settings.optim.ema else None
        self.batcher = Batcher(
            source, run.seed, data.batch, data.micro_batch, model.config.canvas_length,
            model.config.eos_token_ids[0], data.max_length, data.length_multiple, data.encode_fill,
            self.objective.answers,
        )  # fmt: skip
        self.step, self._before, self._started, self._stop = 0, 0.0, time.monotonic(), ""

    def _lora(self) -> Lora:
        """Low-rank changes of the model, which is frozen."""
        lora = Lora(self.model, self.settings.lora, self.settings.run.seed)
        self.objective.phase = lora.phase
        if self.settings.lora.phases == "denoise":
            self.objective.trains_encoder = False
        return lora

    @property
    def seconds(self) -> float:
        """Seconds spent training, earlier sessions of the same run included."""
        return self._before + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        run = self.settings.run
        by_steps = self.step / run.steps if run.steps else 0.0
        by_time = self.seconds / (60 * run.max_minutes) if run.max_minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def train_step(self) -> tuple[dict[str, float], int, int]:
        """One optimiser step. Returns the step's figures, tokens read and examples trained."""
        batches = self.batcher.step(self.step)
        whole, figures = StepCounts.of(batches), dict[str, float]()
        for micro, batch in enumerate(batches):
            for name, value in self._micro_step(batch, micro, whole).items():
                figures[name] = figures.get(name, 0.0) + value
        rate = factor(self.settings.optim, self.step, self.progress)
        norm = float(self.optimizers.clip())
        self.optimizers.step(rate)
        if self.average is not None:
            self.average.update(self.trained)
        self.step += 1
        figures |= {"gradient": norm, "rate": rate}
        examples = whole.rows // self.objective.answers
        return figures, sum(batch.token_count for batch in batches), examples

    def _micro_step(self, batch: Batch, micro: int, whole: StepCounts) -> dict[str, float]:
        """Adds a micro-batch's gradient; returns its share of the step's figures."""
        batch = batch.to(self.settings.run.device)
        draws = self.objective.draw(batch, self.settings.run.seed, self.step, micro)
        with self._autocast():
            loss, figures = self.objective.step(batch, draws, whole)
        loss.backward()
        values = torch.stack([value.detach().float() for value in figures.values()])
        return dict(zip(figures, values.tolist(), strict=True))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.run.autocast == "none":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.settings.run.device).type, torch.bfloat16)

    def resume(self, path: Path | None = None) -> bool:
        """Continues from a checkpoint, by default the run's newest that is whole: `damaged` says why others
        were left out. False when there is none. Raises BadModelFile when none can be loaded."""
        found = [path] if path else checkpoints(self.folder)[::-1]
        self.damaged: list[BadModelFile] = []
        for one in found:
            try:
                state = load_checkpoint(one, self.trained, self.optimizers, self.average)
            except BadModelFile as error:
                self.damaged.append(error)
                continue
            self.step, self._before, self._started = state.step, state.seconds, time.monotonic()
            return True
        if self.damaged:
            raise self.damaged[0]
        return False

    def checkpoint(self) -> Path:
        """Writes a checkpoint and the export."""
        progress = RunProgress(self.step, self.seconds, settings_to_dict(self.settings))
        path = save_checkpoint(
            self.folder, self.trained, self.optimizers, self.average, progress, self.settings.run.keep
        )
        if self.export is not None:
            with self.shipped() as shipped:
                self.export(shipped)
        return path

    @contextlib.contextmanager
    def shipped(self) -> Iterator[nn.Module]:
        """What is trained, with the weights to ship: the average, if one is kept. Training
        weights come back after."""
        if self.average is None:
            yield self.trained
            return
        kept = {name: value.clone() for name, value in self.trained.state_dict().items()}
        self.trained.load_state_dict(self.average.tensors)
        try:
            yield self.trained
        finally:
            self.trained.load_state_dict(kept)

    def run(self, reporter: Reporter, *, steps: int | None = None, after: After | None = None) -> str:
        """Trains to the end (or for `steps` more steps); returns why it ended. Ctrl-C and SIGTERM end it
        cleanly. `after` is called after every step, and may say why the run should end."""
        last = None if steps is None else self.step + steps
        tally, saved = Tally(), (self.step, time.monotonic())
        with self._signals():
            while self.progress < 1 and self.step != last and not self._stop:
                tally.add(*self.train_step())
                if after is not None and (reason := after(self, reporter)):
                    self._stop = reason
                if self.step % self.settings.run.log_every == 0:
                    reporter.metrics(self._metrics(tally), self.progress)
                    tally = Tally()
                if steps is None and self._due(*saved):
                    self.checkpoint()
                    saved = (self.step, time.monotonic())
        if steps is None:
            reporter.say(f"checkpoint: {self.checkpoint()}")
        return self._stop or ("finished" if self.progress >= 1 else "paused")

    def _due(self, step: int, when: float) -> bool:
        run = self.settings.run
        by_steps = run.checkpoint_every and self.step - step >= run.checkpoint_every
        by_time = run.checkpoint_minutes and time.monotonic() - when >= 60 * run.checkpoint_minutes
        return bool(by_steps or by_time)

    def _metrics(self, tally: Tally) -> TrainingMetrics:
        spent = max(time.monotonic() - tally.started, 1e-9)
        return TrainingMetrics(
            step=self.step,
            figures={name: tally.mean(name) for name in tally.sums},
            examples=self.step * self.settings.data.batch,
            examples_per_second=tally.examples / spent,
            tokens_per_second=tally.tokens / spent,
            seconds=self.seconds,
            left=self._left(spent / max(tally.steps, 1)),
        )

    def _left(self, seconds_per_step: float) -> float:
        """Seconds to the end of the run at the present pace."""
        run, limits = self.settings.run, []
        if run.steps:
            limits.append((run.steps - self.step) * seconds_per_step)
        if run.max_minutes:
            limits.append(60 * run.max_minutes - self.seconds)
        return min(limits)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """First Ctrl-C or SIGTERM: finish the step, write a checkpoint, end. A second one ends at once."""
        before: dict[signal.Signals, Any] = {}

        def note(number: int, frame: Any) -> None:
            self._stop = f"stopped by {signal.Signals(number).name}"
            for name, handler in before.items():
                signal.signal(name, handler)

        for name in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
                before[name] = signal.signal(name, note)
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


__all__ = ["After", "Export", "Tally", "Trainer"]
