"""What a run does besides its steps: measures held-out examples, keeps the best, ends in time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files import write_text
from .data import Batcher, TrainingExample
from .report import Reporter

if TYPE_CHECKING:
    from .sft import Trainer

_SEED = 77  # of the held-out draws, whatever the run's is: figures of two runs compare


@dataclass(frozen=True)
class _InOrder:
    examples: Sequence[TrainingExample]

    def example(self, seed: int, index: int) -> TrainingExample:
        return self.examples[index % len(self.examples)]


@dataclass(frozen=True)
class HeldOutLoss:
    """Means over supervised places: cross-entropy in nats, and the share whose likeliest token is wrong."""

    loss: float
    wrong: float


def held_out_loss(trainer: Trainer, examples: Sequence[TrainingExample], most: int = 256) -> HeldOutLoss:
    """Of the first `most` examples, with the same times, noise and coins every time. The weights are those
    that would be shipped."""
    batcher, count = trainer.batcher, min(len(examples), most)
    size = min(batcher.micro_batch, count)
    fixed: Batcher = replace(batcher, source=_InOrder(examples[:count]), seed=_SEED, batch=size)
    sums = torch.zeros(3)
    with trainer.shipped(), torch.no_grad():
        for step in range(-(-count // size)):
            for micro, batch in enumerate(fixed.step(step)):
                batch = batch.to(trainer.settings.run.device)
                draws = trainer.objective.draw(batch, _SEED, step, micro)
                terms = trainer.objective.terms(batch, draws)
                sums += torch.tensor([float(terms.canvas), float(terms.wrong), float(batch.canvas_count)])
    loss, wrong, places = sums.tolist()
    return HeldOutLoss(loss / max(places, 1), wrong / max(places, 1))


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
        examples: Sequence[TrainingExample],
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

    def resume(self) -> None:
        if self.file.is_file():
            self.best = Best(**json.loads(self.file.read_text(encoding="utf-8")))

    def __call__(self, trainer: Trainer, reporter: Reporter) -> str | None:
        """After a step; why the run should end, if it should."""
        if not self.every or trainer.step % self.every:
            return None
        if self.samples is not None:
            self.samples(reporter)
        if not self.examples:
            return None
        found = held_out_loss(trainer, self.examples)
        better = found.loss < self.best.loss
        reporter.say(
            f"step {trainer.step}  held out: loss {found.loss:.4f}  wrong {found.wrong:.3f}"
            + ("  (the best so far)" if better else f"  (best {self.best.loss:.4f} at {self.best.step})")
        )
        self.log({"valid_loss": found.loss, "valid_wrong": found.wrong}, trainer.step)
        if better:
            self.keep()
        since = 0 if better else self.best.since + 1
        self.best = Best(trainer.step, found.loss, 0) if better else replace(self.best, since=since)
        write_text(self.file, json.dumps(asdict(self.best)) + "\n")
        if self.patience and self.best.since >= self.patience:
            return f"nothing better for {self.best.since} measurements"
        return None


__all__ = ["Best", "HeldOutLoss", "Watch", "held_out_loss"]
