"""What a test knows to be there, though its type says it may be None."""

from __future__ import annotations

from typing import TypeVar

Thing = TypeVar("Thing")


def present(thing: Thing | None) -> Thing:
    assert thing is not None
    return thing


__all__ = ["present"]
