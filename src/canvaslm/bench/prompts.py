"""What is asked: prompts from files, and two sets for when there is no file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..errors import NotFound, UsageError

Turn = dict[str, Any]

_GENERAL = (
    "Why is the sky blue?",
    "Write a Python function that merges two sorted lists.",
    "List five things to pack for a weekend in the mountains.",
    "Explain to a ten-year-old how a refrigerator keeps food cold.",
    "Translate into French: The library is closed on Mondays.",
    "Write a short, polite e-mail that moves a meeting from Tuesday to Thursday.",
)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user's turn; `max_new_tokens` None leaves the limit to the run."""

    messages: tuple[Turn, ...]
    max_new_tokens: int | None = None


def general_prompts() -> list[Prompt]:
    """A few short ones of different kinds, the same for ever."""
    return [_user(text) for text in _GENERAL]


def demo_prompts(count: int = 1, seed: int = 0) -> list[Prompt]:
    """`count` held-out items of each of the demo model's evaluated tasks."""
    from ..demo.tasks import TASKS

    made = []
    for name, task in TASKS.items():
        if task.evaluated:
            rng = Random(f"bench/{seed}/{name}")
            made += [Prompt(tuple(task.sample(rng, "heldout").messages)) for _ in range(count)]
    return made


def read_prompts(paths: Sequence[Path]) -> list[Prompt]:
    """Prompts of all files, in order.

    `.jsonl`: one a line, as a string, or an object with `prompt` or `messages` (and `system`,
    `max_new_tokens` or `max_tokens`). Any other file is text: one prompt a line. Empty lines are skipped.
    Raises NotFound, UsageError naming the file and the line.
    """
    found = [prompt for path in paths for prompt in _read(path)]
    if not found:
        raise UsageError(f"no prompt in {', '.join(str(path) for path in paths)}", "prompts")
    return found


def _read(path: Path) -> list[Prompt]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file of prompts") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})", "prompts") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix.lower() != ".jsonl":
        return [_user(line.strip()) for _, line in lines]
    return [_from_json(f"{path}, line {number}", line) for number, line in lines]


def _from_json(where: str, line: str) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})", "prompts") from error
    if isinstance(entry, str):
        return _user(entry)
    if not isinstance(entry, Mapping):
        raise UsageError(f"{where}: should be a string or an object", "prompts")
    limit = entry.get("max_new_tokens", entry.get("max_tokens"))
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UsageError(
            f"{where}: max_new_tokens should be a whole number from 1 on, found {limit!r}", "prompts"
        )
    return Prompt((*_system(where, entry), *_turns(where, entry)), limit)


def _system(where: str, entry: Mapping[str, Any]) -> list[Turn]:
    text = entry.get("system")
    if text is None:
        return []
    if not isinstance(text, str):
        raise UsageError(f"{where}: system should be a string", "prompts")
    return [{"role": "system", "content": text}]


def _turns(where: str, entry: Mapping[str, Any]) -> list[Turn]:
    if isinstance(entry.get("prompt"), str):
        return [{"role": "user", "content": entry["prompt"]}]
    messages = entry.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
        return messages
    raise UsageError(f"{where}: needs prompt (a string) or messages (a list of turns with a role)", "prompts")


def _user(text: str) -> Prompt:
    return Prompt(({"role": "user", "content": text},))


__all__ = ["Prompt", "Turn", "demo_prompts", "general_prompts", "read_prompts"]
