"""Questions and states as plain data, in the form of OpenAI's decisions: what HTTP, files and the command
line have in common.

    {"type": "predicate", "name": "refund", "instructions": "The customer asks for a refund."}
    {"type": "choice", "instructions": "Tone?", "choices": [{"value": "angry", "description": "..."}]}
    {"type": "score", "instructions": "How urgent?", "levels": [{"label": "can wait"}, {"label": "today"}]}

Errors name the place: `questions[1].choices`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from .prompt import BETWEEN
from .questions import MOST_OPTIONS, MOST_QUESTIONS, Question, QuestionOption, value_text

FEWEST_CHOICES, FEWEST_LEVELS, MOST_LEVELS = 2, 2, 10
JSON_LEVELS, JSON_VALUES, JSON_BYTES = 32, 10_000, 256 << 10  # of a part that is data
_ROLES = ("user", "developer", "system", "assistant")
_FOREIGN = ("yes_no",)  # what another server's questions say at this place


def questions_of(data: Any, where: str = "questions") -> tuple[list[str | None], list[Question]]:
    """(names, questions). Raises UsageError."""
    if not isinstance(data, list):
        raise _wrong(where, "should be a list of questions")
    if not 1 <= len(data) <= MOST_QUESTIONS:
        raise _wrong(where, f"has {len(data)} questions: ask 1 to {MOST_QUESTIONS}")
    read = [question_of(one, f"{where}[{number}]") for number, one in enumerate(data)]
    return [name for name, _ in read], [question for _, question in read]


def question_of(data: Any, where: str = "question") -> tuple[str | None, Question]:
    """(name, question). Raises UsageError."""
    fields = _object(data, where)
    kind = fields.get("type")
    if kind in _FOREIGN or "question" in fields:
        raise _wrong(where, 'should be as {"type": "predicate", "instructions": ...}, "choice" or "score"')
    name = fields.get("name")
    if name is not None and not isinstance(name, str):
        raise _wrong(f"{where}.name", "should be a text")
    told = content_text(fields.get("instructions"), f"{where}.instructions")
    if kind == "predicate":
        return name, Question(kind, told, (QuestionOption(True, "true"), QuestionOption(False, "false")))
    if kind == "choice":
        options = _choices(fields.get("choices"), f"{where}.choices")
    elif kind == "score":
        options = _levels(fields.get("levels"), f"{where}.levels")
    else:
        raise _wrong(f"{where}.type", "should be predicate, choice or score")
    try:
        return name, Question(kind, told, options)
    except UsageError as error:
        raise UsageError(f"{where}.{error}", f"{where}.{error.param}") from None


def content_text(content: Any, where: str) -> str:
    """A text, or the texts and data of parts. Raises UsageError for images, and for what is neither."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, "should be a text or a list of parts")
    return "\n".join(_part(part, f"{where}[{number}]") for number, part in enumerate(content))


def state_of(given: Any, where: str = "input") -> str:
    """A state: a text, or items of a conversation, written down in order. Raises UsageError."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise _wrong(where, "should be a text or a list of items")
    calls: dict[str, str] = {}
    items = (_item(item, f"{where}[{number}]", calls) for number, item in enumerate(given))
    return BETWEEN.join(items)


def _item(item: Any, where: str, calls: dict[str, str]) -> str:
    """One item, with who says it. calls: the name of each call so far by its id."""
    fields = _object(item, where)
    kind = fields.get("type", "message")
    if kind == "message":
        role = fields.get("role")
        if role not in _ROLES:
            raise _wrong(f"{where}.role", f"should be one of {', '.join(_ROLES)}")
        return f"{role}: {content_text(fields.get('content'), f'{where}.content')}"
    if kind in ("function_call", "custom_tool_call"):
        name, said = fields.get("name"), fields.get("arguments" if kind == "function_call" else "input")
        if not isinstance(name, str) or not isinstance(said, str):
            raise _wrong(where, f"a {kind} has a name and texts")
        calls[_call_id(fields, where)] = name
        return f"call of {name}: {said}"
    if kind in ("function_call_output", "custom_tool_call_output"):
        known = calls.get(_call_id(fields, where))
        if known is None:
            raise _wrong(f"{where}.call_id", "belongs to no call before it")
        return f"result of {known}: {content_text(fields.get('output'), f'{where}.output')}"
    raise _wrong(f"{where}.type", "is no kind of item that is read")


def _call_id(fields: Mapping[str, Any], where: str) -> str:
    found = fields.get("call_id")
    if not isinstance(found, str):
        raise _wrong(f"{where}.call_id", "should be a text")
    return found


def _part(part: Any, where: str) -> str:
    fields = _object(part, where)
    kind = fields.get("type")
    if kind in ("input_text", "output_text", "text", "refusal"):
        text = fields.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise _wrong(where, "has no text")
        return text
    if kind == "input_json":
        return data_text(fields.get("data"), f"{where}.data")
    if kind in ("input_image", "image", "image_url"):
        raise _wrong(where, "is an image, and this model reads none: describe it in words")
    raise _wrong(f"{where}.type", "is no kind of part that is read")


def data_text(data: Any, where: str) -> str:
    """Plain data as JSON, within limits. Raises UsageError."""
    values, level = [data], 0
    count = 0
    while values:
        count += len(values)
        if count > JSON_VALUES:
            raise _wrong(where, f"has more than {JSON_VALUES} values")
        inner = [list(v.values()) if isinstance(v, dict) else v for v in values if isinstance(v, dict | list)]
        level += 1
        if inner and level > JSON_LEVELS:
            raise _wrong(where, f"is nested more than {JSON_LEVELS} deep")
        values = [value for each in inner for value in each]
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise _wrong(where, "is no plain data") from None
    if len(text.encode("utf-8", "replace")) > JSON_BYTES:
        raise _wrong(where, f"has more than {JSON_BYTES} bytes")
    return text


def _choices(data: Any, where: str) -> tuple[QuestionOption, ...]:
    options = []
    for number, one in enumerate(_listed(data, where, FEWEST_CHOICES, MOST_OPTIONS)):
        fields = _object(one, f"{where}[{number}]")
        value = fields.get("value")
        if not isinstance(value, str | bool):
            raise _wrong(f"{where}[{number}].value", "should be a text, true or false")
        options.append(QuestionOption(value, value_text(value), _described(fields, f"{where}[{number}]")))
    return tuple(options)


def _levels(data: Any, where: str) -> tuple[QuestionOption, ...]:
    options = []
    for number, one in enumerate(_listed(data, where, FEWEST_LEVELS, MOST_LEVELS)):
        fields = _object(one, f"{where}[{number}]")
        label = fields.get("label")
        if not isinstance(label, str):
            raise _wrong(f"{where}[{number}].label", "should be a text")
        options.append(QuestionOption(number, label, _described(fields, f"{where}[{number}]")))
    return tuple(options)


def _listed(data: Any, where: str, fewest: int, most: int) -> Sequence[Any]:
    if not isinstance(data, list) or not fewest <= len(data) <= most:
        raise _wrong(where, f"should be a list of {fewest} to {most}")
    return data


def _described(fields: Mapping[str, Any], where: str) -> str:
    description = fields.get("description")
    if description is not None and not isinstance(description, str):
        raise _wrong(f"{where}.description", "should be a text")
    return description or ""


def _object(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise _wrong(where, "should be an object")
    return data


def _wrong(where: str, what: str) -> UsageError:
    return UsageError(f"{where} {what}", where)


__all__ = ["content_text", "data_text", "question_of", "questions_of", "state_of"]
