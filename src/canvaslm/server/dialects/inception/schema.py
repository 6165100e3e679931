"""What Mistral's and Inception's clients send for filling in and for edits, and what they get."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from ....session.template import Hole, Template, infill_template
from ...fields import WHOLE, AnswerSchema, Int
from ...limits import MAX_MESSAGES
from ...problems import unsupported
from ...service import FillingRequest
from ..openai.schema import ChatMessage, CompletionUsage, Sampled

_CURSOR = "<|cursor|>"


class EditorRequest(Sampled):
    """Fields that the three have in common. There is one answer."""

    random_seed: Annotated[int, Field(ge=0, le=2**63 - 1), WHOLE] | None = Field(
        None, description="Mistral's name of seed."
    )

    @property
    def names(self) -> dict[str, str]:
        """Our names -> the client's."""
        return {"max_new_tokens": self.limit[0], "messages": "prompt", "template": "prompt"}

    def params(self) -> dict[str, Any]:
        """Fields of `Params`."""
        seed = {} if self.random_seed is None else {"seed": self.random_seed}
        return {**seed, **super().params()}

    def filling(self) -> FillingRequest:
        """The text with a hole."""
        raise NotImplementedError


class FimRequest(EditorRequest):
    """POST /v1/fim/completions"""

    prompt: str = Field(description="Text before the answer.")
    suffix: str | None = Field(
        None, description="Text behind the answer; without it the answer ends the text."
    )

    def filling(self) -> FillingRequest:
        return FillingRequest(infill_template(self.prompt, self.suffix or ""))


class MessageRequest(EditorRequest):
    """A body whose text is in its messages."""

    messages: list[ChatMessage] = Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Int | None = None

    _limits = ("max_completion_tokens", "max_tokens", "n_predict")

    @property
    def names(self) -> dict[str, str]:
        return {"max_new_tokens": self.limit[0], "template": "messages"}

    @property
    def asked(self) -> str:
        """The last turn of the user. Raises Problem without one."""
        for message in reversed(self.messages):
            if message.role == "user" and isinstance(message.content, str):
                return message.content
        raise unsupported("messages", "there is no user's message with text")

    def system(self) -> str | None:
        """What messages of the system say."""
        told = [m.content for m in self.messages if m.role in ("system", "developer")]
        return "\n\n".join(text for text in told if isinstance(text, str)) or None


class EditRequest(MessageRequest):
    """POST /v1/edit/completions: the code in `<|code_to_edit|>`, inside of `<|current_file_content|>`,
    is written anew."""

    def filling(self) -> FillingRequest:
        """The file, in which the part to edit is a hole. Raises Problem if that is not marked."""
        asked = self.asked
        file = _inside(asked, "current_file_content")
        file = asked if file is None else re.sub(r"\A\s*current_file_path:[^\n]*\n", "", file)
        parts = re.split(r"<\|/?code_to_edit\|>", file)
        if len(parts) != 3:
            raise unsupported(
                "messages",
                "mark what is to be edited: <|code_to_edit|> before it and <|/code_to_edit|> behind",
            )
        before, part, behind = (text.replace(_CURSOR, "") for text in parts)
        start, end = len(part) - len(part.lstrip("\n")), len(part.rstrip("\n"))
        start = min(start, end)
        template = Template((before + part[:start], part[end:] + behind), (Hole(),))
        return FillingRequest(template, asked, self.system(), draft=part[start:end])


class ApplyRequest(MessageRequest):
    """POST /v1/apply/completions: the code in `<|original_code|>` with what `<|update_snippet|>` says."""

    def filling(self) -> FillingRequest:
        """The whole code is a hole, the original its draft. Raises Problem without both."""
        asked = self.asked
        original, update = _inside(asked, "original_code"), _inside(asked, "update_snippet")
        if original is None or update is None:
            raise unsupported(
                "messages",
                "give the code in <|original_code|> ... <|/original_code|>, and the change in "
                "<|update_snippet|> ... <|/update_snippet|>",
            )
        return FillingRequest(Template(("", ""), (Hole(),)), asked, self.system(), draft=original.strip("\n"))


def _inside(text: str, mark: str) -> str | None:
    """What stands between `<|mark|>` and `<|/mark|>`; None if they are not there."""
    opening, closing = f"<|{mark}|>", f"<|/{mark}|>"
    start, end = text.find(opening), text.rfind(closing)
    return None if start < 0 or end < start else text[start + len(opening) : end]


class EditorAnswer(AnswerSchema):
    """An answer that is not streamed. `choices` have the text twice: as `text`, and in a `message`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    seed: int
    choices: list[dict[str, Any]]
    usage: CompletionUsage
    timings: dict[str, Any]
    warnings: list[dict[str, str]] | None = None


__all__ = ["ApplyRequest", "EditRequest", "EditorAnswer", "EditorRequest", "FimRequest"]
