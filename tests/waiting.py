"""Waiting for a state. No test fails for being slow: `HUNG` only ends one that would wait for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

HUNG = 120.0  # seconds; far beyond what a busy machine needs


def wait_for(condition: Callable[[], Any], seconds: float = HUNG) -> None:
    """Returns once the condition holds; fails the test if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


class StepGate:
    """Lets an engine take `free` steps and holds it inside the next one until the gate is opened.

    So a test can do something *while* a step runs, and count the steps that follow.
    """

    def __init__(self, session: Any, free: int) -> None:
        self.steps = 0  # begun
        self._free = free
        self._open = threading.Event()
        runner = session.engine.runner
        self._run = runner.run
        runner.run = self._step

    def _step(self, rows: Any) -> Any:
        self.steps += 1
        if self.steps > self._free:
            self._open.wait(HUNG)
        return self._run(rows)

    def wait_held(self) -> None:
        """Returns once the engine stands in the gate."""
        wait_for(lambda: self.steps > self._free)

    def open(self) -> None:
        """From now on every step runs."""
        self._open.set()


__all__ = ["HUNG", "StepGate", "wait_for"]
