"""Fixtures that tests of constraints share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def tokenizers_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every tokenizer that llguidance makes."""
    import llguidance

    made: list[int] = []
    real = llguidance.LLTokenizer

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(llguidance, "LLTokenizer", counted)
    return made
