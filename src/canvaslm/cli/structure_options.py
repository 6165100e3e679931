"""The flags that say what an answer has to be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .given_text import argument_text, file_text

_STRUCTURE = "What the answer has to be"


@dataclass(frozen=True)
class AnswerForm:
    """What the answer has to be, for sure."""

    schema: Annotated[
        str | None,
        typer.Option(
            "--schema", metavar="FILE", rich_help_panel=_STRUCTURE,
            help="The answer is JSON of the schema in this file.",
        ),
    ] = None  # fmt: skip
    regex: Annotated[
        str | None,
        typer.Option(
            "--regex", metavar="PATTERN", rich_help_panel=_STRUCTURE, help="The whole answer matches this.",
        ),
    ] = None  # fmt: skip
    choice: Annotated[
        list[str] | None,
        typer.Option(
            "--choice", metavar="TEXT", rich_help_panel=_STRUCTURE,
            help="The answer is one of these: give it once for each.",
        ),
    ] = None  # fmt: skip
    grammar: Annotated[
        str | None,
        typer.Option(
            "--grammar", metavar="FILE", rich_help_panel=_STRUCTURE,
            help="The answer is of the grammar in this file, in GBNF or Lark.",
        ),
    ] = None  # fmt: skip

    def chosen(self) -> dict[str, Any]:
        """Options of a session. Raises UsageError for a file that is no JSON, OSError as reading does."""
        given = {
            "schema": None if self.schema is None else _json_of(self.schema),
            "regex": None if self.regex is None else argument_text(self.regex, "--regex"),
            "choice": [argument_text(text, "--choice") for text in self.choice or ()] or None,
            "grammar": None if self.grammar is None else file_text(self.grammar, "--grammar"),
        }
        return {name: value for name, value in given.items() if value is not None}


def _json_of(path: str) -> Any:
    try:
        return json.loads(file_text(path, "--schema"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {error}", "schema") from error


__all__ = ["AnswerForm"]
