"""What a run does besides its steps: measures held-out examples, keeps the best, ends in time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files import write_text
from .data import Batcher, Pair, TrainingExample
from .objective import StepCounts
from .report import Reporter, digits

if TYPE_CHECKING:
    from .sft import Trainer

_SEED = 77  # of the held-out draws, whatever the run's is: figures of two runs compare


@dataclass(frozen=True)
class _InOrder:
    examples: Sequence[TrainingExample | Pair]

    def example(self, seed: int, index: int) -> TrainingExample | Pair:
        return self.examples[index % len(self.examples)]


def held_out_figures(
    trainer: Trainer, examples: Sequence[TrainingExample | Pair], most: int = 256
) -> dict[str, float]:
    """The objective's figures (`Objective.held_out`) over the first `most` examples, with the same times,
    noise and coins every time. The weights are those that would be shipped."""
    batcher, count, objective = trainer.batcher, min(len(examples), most), trainer.objective
    size = min(batcher.micro_batch, count)
    fixed: Batcher = replace(batcher, source=_InOrder(examples[:count]), seed=_SEED, batch=size)
    batches = [fixed.step(step) for step in range(-(-count // size))]
    whole = StepCounts.of(batch for step in batches for batch in step)
    sums = dict.fromkeys(objective.held_out, 0.0)
    with trainer.shipped(), torch.no_grad():
        for step, parts in enumerate(batches):
            for micro, batch in enumerate(parts):
                batch = batch.to(trainer.settings.run.device)
                _, figures = objective.step(batch, objective.draw(batch, _SEED, step, micro), whole)
                for name, figure in objective.held_out.items():
                    sums[name] += float(figures[figure])
    return sums


@dataclass
class Best:
    """The lowest held-out loss so far, and how many measurements have passed since."""

    step: int = -1
    loss: float = float("inf")
    since: int = 0


class Watch:
    """Measures every `every` steps, and calls `keep` when nothing was better before. Its state is a file, so
    that a resumed run goes on as it was."""

    def __init__(
        self,
        examples: Sequence[TrainingExample | Pair],
        *,
        every: int,
        patience: int,
        file: Path,
        keep: Callable[[], None],
        samples: Callable[[Reporter], None] | None = None,
        log: Callable[[dict[str, float], int], None] = lambda values, step: None,
    ) -> None:
        """patience: measurements without a better one before the run ends; 0: it does not. samples: shows
        what the model writes by now. log: takes the figures of a step."""
        self.examples, self.every, self.patience, self.file = examples, every, patience, file
        self.keep, self.samples, self.log = keep, samples, log
        self.best = Best()
        self._past: list[tuple[int, Best]] = []  # after each measurement: of which step

    def resume(self, step: int) -> None:
        """As it was after this step, whatever was measured after that: those steps are made again."""
        if not self.file.is_file():
            return
        past = json.loads(self.file.read_text(encoding="utf-8"))["measured"]
        self._past = [(at, Best(**best)) for at, best in past if at <= step]
        if self._past:
            self.best = self._past[-1][1]

    def __call__(self, trainer: Trainer, reporter: Reporter) -> str | None:
        """After a step; why the run should end, if it should."""
        if not self.every or trainer.step % self.every:
            return None
        if self.samples is not None:
            self.samples(reporter)
        if not self.examples:
            return None
        found = held_out_figures(trainer, self.examples)
        loss = found["loss"]
        better = loss < self.best.loss
        told = "  ".join(f"{name} {value:.{digits(name)}f}" for name, value in found.items())
        reporter.say(
            f"step {trainer.step}  held out: {told}"
            + ("  (the best so far)" if better else f"  (best {self.best.loss:.4f} at {self.best.step})")
        )
        self.log({f"valid_{name}": value for name, value in found.items()}, trainer.step)
        if better:
            self.keep()
        since = 0 if better else self.best.since + 1
        self.best = Best(trainer.step, loss, 0) if better else replace(self.best, since=since)
        self._past.append((trainer.step, self.best))
        found_so_far = {**asdict(self.best), "measured": [(at, asdict(best)) for at, best in self._past]}
        write_text(self.file, json.dumps(found_so_far) + "\n")
        if self.patience and self.best.since >= self.patience:
            return f"nothing better for {self.best.since} measurements"
        return None


__all__ = ["Best", "Watch", "held_out_figures"]
