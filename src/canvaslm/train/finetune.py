"""A fine-tuning run from a table of data to an adapter: reads the data, plans the run, and carries it out.

DIR/adapter is the best adapter by the held-out loss, or the last where nothing is held out; DIR/last is the
last, DIR/checkpoints what a run goes on from, DIR/metrics.jsonl its figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UsageError
from ..model.protocol import Model
from ..weights.adapters.peft_write import write_peft
from .checkpoint import checkpoints
from .data import Pair, Shuffled, TrainingExample
from .formats import Examples, Renderer, held_out, make_examples
from .lora import Lora
from .memory import plan_memory, weight_count
from .report import Reporter, clock
from .resume import check_resumed, data_digest, trim_metrics
from .settings import Settings
from .sft import Trainer
from .tables import has_split, read_table
from .trackers import trackers
from .validate import Watch


@dataclass(frozen=True)
class DataChoice:
    """What is read. valid: another table, a share as "5%", or nothing. preferences: of answers, for dpo."""

    data: str
    valid: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    max_length: int = 4096
    preferences: bool = False


@dataclass(frozen=True)
class TuningData:
    """Examples (or pairs of answers) for training and held-out ones, with what was read."""

    train: list[TrainingExample | Pair]
    valid: list[TrainingExample | Pair]
    made: Examples


def read_data(choice: DataChoice, renderer: Renderer) -> TuningData:
    """Raises NotFound and UsageError, with file and line."""

    def examples(source: str, split: str) -> Examples:
        rows = read_table(source, split=split)
        return make_examples(
            rows,
            renderer,
            columns=choice.columns,
            max_length=choice.max_length,
            preferences=choice.preferences,
        )

    made = examples(choice.data, "train")
    valid = choice.valid or ("valid" if has_split(choice.data, "valid") else "")
    if valid == "valid":
        return TuningData(made.items, examples(choice.data, "valid").items, made)
    if not valid:
        return TuningData(made.items, [], made)
    if valid.endswith("%"):
        train, apart = held_out(made, _share(valid))
        if not train or not apart:
            raise UsageError(
                f"valid: {valid} of {len(made.items)} examples leaves {len(train)} for training and "
                f"{len(apart)} held out; name another share, or a file",
                param="valid",
            )
        return TuningData(train, apart, made)
    return TuningData(made.items, examples(valid, "valid").items, made)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UsageError(f"valid: {text!r} is no share between 0% and 100%", param="valid")
    return share


@dataclass(frozen=True)
class ShownExample:
    """An example as text, what is trained apart from what is only read. rejected: the worse answer of two."""

    prompt: str
    answer: str
    rejected: str | None = None


def shown(examples: Sequence[TrainingExample | Pair], tokenizer: Any, count: int = 3) -> list[ShownExample]:
    """The first few, as the model reads them."""

    def texts(*parts: tuple[int, ...]) -> ShownExample:
        return ShownExample(*(tokenizer.decode(ids, skip_special=False) for ids in parts))

    return [
        texts(one.prompt, one.chosen.response, one.rejected.response)
        if isinstance(one, Pair)
        else texts(one.prompt, one.response)
        for one in examples[:count]
    ]


def steps_of(examples: int, batch: int, epochs: float) -> int:
    return max(1, math.ceil(examples * epochs / batch))


@dataclass
class FineTuning:
    """A run that is ready to begin."""

    trainer: Trainer
    data: TuningData
    out: Path
    name: str  # of the base model, for the adapter's config
    report: tuple[str, ...] = ()
    every: int = 0
    patience: int = 0
    samples: Callable[[Reporter], None] | None = None

    @classmethod
    def of(cls, model: Model, data: TuningData, settings: Settings, out: Path, name: str) -> FineTuning:
        digest = data_digest(data.made.keys, len(data.train))
        settings = replace(settings, data=replace(settings.data, options={"digest": digest}))
        trainer = Trainer(model, Shuffled(data.train), settings)
        made = cls(trainer, data, out, name)
        trainer.export = made.save_last
        return made

    def save_last(self, lora: nn.Module) -> None:
        self._save(lora, self.out / "last")
        if not self.data.valid:
            self._save(lora, self.out / "adapter")

    def keep_best(self) -> None:
        with self.trainer.shipped() as lora:
            self._save(lora, self.out / "adapter")

    def _save(self, lora: nn.Module, folder: Path) -> None:
        assert isinstance(lora, Lora)
        write_peft(lora.adapter(), folder, self.trainer.model.config, base=self.name, force=True)

    def plan(self) -> list[str]:
        """What the run will do, in lines for the reader."""
        trainer, settings = self.trainer, self.trainer.settings
        lora, run, data = settings.lora, settings.run, settings.data
        trained = sum(p.numel() for p in trainer.trained.parameters())
        every, longest = weight_count(trainer.model), self.data.made.report.longest
        memory = plan_memory(trainer, longest)
        lines = [
            f"data: {self.data.made.report.text()}",
            f"{len(self.data.train):,} {self._unit} to train on, {len(self.data.valid):,} held out",
            f"{trained:,} parameters trained (rank {lora.rank} on {', '.join(lora.targets)}; "
            f"{'canvases alone' if lora.phases == 'denoise' else 'both phases'}) beside {every:,}",
            memory.text(),
        ]
        if memory.is_short:
            lines.append(f"warning: more than is free; {self._remedy()}")
        if run.steps:
            passes = run.steps * data.batch / len(self.data.train)
            lines.append(
                f"{run.steps:,} steps of {data.batch} {self._unit}, {passes:.1f} passes over the data"
            )
        else:
            lines.append(f"{run.max_minutes:g} minutes, {data.batch} {self._unit} a step")
        return lines

    def _remedy(self) -> str:
        """What takes less memory, of what is not yet done."""
        settings = self.trainer.settings
        found = [] if settings.run.recompute else ["--recompute"]
        if min(settings.data.micro_batch, settings.data.batch) > 1:
            found.append(f"a --micro-batch below {settings.data.micro_batch}")
        found.append(f"a --max-length below {self.data.made.report.longest}")
        if settings.lora.phases == "both":
            found.append("--phases denoise")
        return "what helps: " + ", ".join(found)

    @property
    def _unit(self) -> str:
        return "examples" if self.trainer.objective.answers == 1 else "pairs of answers"

    def pace(self, steps: int = 2) -> str:
        """Trains a few steps to tell how long all will take: for a run that is not carried out."""
        self.trainer.train_step()
        begin = time.monotonic()
        for _ in range(steps):
            self.trainer.train_step()
        seconds, run = (time.monotonic() - begin) / steps, self.trainer.settings.run
        whole = min(run.steps * seconds if run.steps else math.inf, 60 * run.max_minutes or math.inf)
        end = datetime.now() + timedelta(seconds=whole)
        return f"{seconds:.2f} s a step: {clock(whole)} in all, until {end:%H:%M}"

    def run(self, *, resume: bool) -> str:
        """Trains; returns why it ended. The first Ctrl-C finishes the step and writes a checkpoint."""
        self.out.mkdir(parents=True, exist_ok=True)
        log = trackers(self.report, self.out, {"model": self.name})
        watch = Watch(
            self.data.valid, every=self.every, patience=self.patience, file=self.out / "best.json",
            keep=self.keep_best, samples=self.samples, log=log,
        )  # fmt: skip
        notes = self._go_on(watch) if resume else []
        trim_metrics(self.out / "metrics.jsonl", self.trainer.step)
        with Reporter(self.out / "metrics.jsonl", log=log) as reporter:
            for note in notes:
                reporter.say(note)
            reason = self.trainer.run(reporter, after=watch)
            if self.data.valid and not (self.out / "adapter").is_dir():
                self.keep_best()  # it ended before the first measurement
            reporter.say(f"{reason} after {self.trainer.step} steps, {clock(self.trainer.seconds)}")
            if watch.best.step >= 0:
                reporter.say(f"best at step {watch.best.step}: held-out loss {watch.best.loss:.4f}")
        return reason

    def _go_on(self, watch: Watch) -> list[str]:
        """From the newest whole checkpoint; what is told of it. Raises UsageError without one, and for
        settings that it does not fit."""
        there = checkpoints(self.trainer.folder)
        notes = check_resumed(there[-1], self.trainer.settings) if there else []
        if not self.trainer.resume():
            raise UsageError(f"{self.out}: no checkpoint to resume from; run without --resume", "resume")
        watch.resume(self.trainer.step)
        damaged = [f"note: left out, as it is damaged: {error}" for error in self.trainer.damaged]
        return [*damaged, *notes, f"going on from step {self.trainer.step}"]


__all__ = [
    "DataChoice",
    "FineTuning",
    "ShownExample",
    "TuningData",
    "read_data",
    "shown",
    "steps_of",
]  # fmt: skip
