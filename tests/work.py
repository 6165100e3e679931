"""The cost of something in work done, which is the same on every machine, not in seconds."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any


def calls_of(function: Callable[[], object]) -> int:
    """How many Python functions are entered while `function` runs, itself included."""
    count = 0

    def count_calls(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(count_calls)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def peak_bytes_of(function: Callable[[], object]) -> int:
    """The most memory that Python objects made while `function` runs take at one time."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


__all__ = ["calls_of", "peak_bytes_of"]
