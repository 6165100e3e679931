"""Python types as JSON schemas: pydantic models, TypedDicts and what they are made of; and answers read back.

pydantic is not needed: its models bring `model_json_schema` and `model_validate_json` with them.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from ..errors import UsageError

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"},
    None: {"type": "null"}, types.NoneType: {"type": "null"}, Any: {},
}  # fmt: skip
_DEPTH = 32


def schema_of(given: Any) -> Any:
    """The JSON schema that a caller gives: as it is, of a pydantic model, or of a TypedDict.

    Raises UsageError for a type that has none.
    """
    if isinstance(given, Mapping | bool):
        return given
    if hasattr(given, "model_json_schema"):
        return given.model_json_schema()
    if is_typeddict(given):
        return _of(given, 0)
    raise UsageError(
        f"schema should be a JSON schema, a pydantic model or a TypedDict, found {given!r:.100}", "schema"
    )


def _of(kind: Any, depth: int) -> dict[str, Any]:
    if depth > _DEPTH:
        raise UsageError("schema: a type that holds itself has no end; give a JSON schema", "schema")
    if hasattr(kind, "model_json_schema"):
        raise UsageError(f"schema: {kind.__name__} stands inside a TypedDict: use one or the other", "schema")
    if is_typeddict(kind):
        return _of_typed_dict(kind, depth)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    origin = get_origin(kind)
    if origin is None and kind in _PLAIN:
        return dict(_PLAIN[kind])
    return _of_generic(kind, origin, get_args(kind), depth)


def _of_generic(kind: Any, origin: Any, arguments: tuple[Any, ...], depth: int) -> dict[str, Any]:
    if origin in (Required, NotRequired, Annotated):
        return _of(arguments[0], depth + 1)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(argument, depth + 1) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": _of(arguments[0], depth + 1)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _of(arguments[1], depth + 1)}
    if origin is tuple and arguments and Ellipsis not in arguments:
        items = [_of(argument, depth + 1) for argument in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    raise UsageError(f"schema: there is no JSON for the type {kind!r:.100}; give a JSON schema", "schema")


def _of_typed_dict(kind: Any, depth: int) -> dict[str, Any]:
    try:
        fields = get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise UsageError(f"schema: a type of {kind.__name__} is not known: {error}", "schema") from error
    return {
        "type": "object",
        "properties": {name: _of(field, depth + 1) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if _is_required(kind, name, field)],
        "additionalProperties": False,
    }


def _is_required(kind: Any, name: str, field: Any) -> bool:
    """`__required_keys__` does not see the marks of annotations that are strings."""
    marked = get_origin(field)
    return marked is Required or (marked is not NotRequired and name in kind.__required_keys__)


def read_answer(given: Any, text: str) -> Any:
    """What an answer says: an instance of the pydantic model that was asked for, else plain data.

    None for what is no JSON, as an answer that was cancelled. Raises UsageError where the class refuses JSON
    of its own schema, which says nothing of validators; pydantic's error is its cause.
    """
    try:
        plain = json.loads(text)
    except ValueError:
        return None
    if not hasattr(given, "model_validate"):
        return plain
    try:
        return given.model_validate(plain)
    except ValueError as error:
        name = getattr(given, "__name__", "the class")
        raise UsageError(
            f"the answer is JSON of the schema, but a validator of {name} refuses it: {_refused(error)}. "
            f"Say so in the schema too, as Field(ge=0), or ask again with another seed. It was {text:.200}",
            "schema",
        ) from error


def _refused(error: ValueError) -> str:
    """The fields that pydantic names, and why it refuses them."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'the whole'}: {each['msg']}" for each in errors()[:3]
    )


__all__ = ["read_answer", "schema_of"]
