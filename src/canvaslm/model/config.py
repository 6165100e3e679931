"""What engine, cache and weights need of any model's configuration, and the strict
reader of a `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from ..errors import BadConfig
from ..families import ModelFacts


class ModelConfig(Protocol):
    """The sizes of a model of any family. A family's own class holds more; it is a frozen dataclass.

    `family` names the entry in `model.registry`; `facts` is how the family denoises. The cache reads the
    numbers of layers, heads and windows; a model without sliding layers has a `sliding_window` of 1.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def family(self) -> str: ...
    @property
    def facts(self) -> ModelFacts: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values; those of sliding layers, where kinds of layers
        differ (see `kv_heads_of`)."""

    @property
    def canvas_length(self) -> int: ...
    @property
    def sliding_window(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def softcap(self) -> float:
        """c where the logits are c tanh(x / c); 0 where they are x."""

    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def pad_token_id(self) -> int: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def is_sliding(self, layer: int) -> bool: ...
    def head_dim_of(self, layer: int) -> int: ...
    def kv_heads_of(self, layer: int) -> int: ...
    def window_of(self, layer: int) -> int | None:
        """Tokens a sliding layer sees, itself included; None for a full layer."""

    def active_experts(self) -> tuple[int, int]:
        """How many of how many experts take part in one token's pass; (1, 1) where there are none."""

    def with_layers(self, count: int) -> ModelConfig:
        """The same model with only its first `count` layers."""

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that reads back to the same configuration."""


class ConfigFields:
    """An object of a `config.json`, read strictly: what has the wrong type or size raises
    BadConfig with its name."""

    def __init__(self, fields: Any, path: str = "") -> None:
        """path: where the object stands ("text_config."), for messages. Raises
        BadConfig if it is no object."""
        if not isinstance(fields, Mapping):
            name = path.rstrip(".")
            raise BadConfig(
                f"config.json: {f'{name} should be' if name else 'the top level is not'} an object"
            )
        self.fields, self.path = fields, path

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def wrong(self, name: str, wanted: str) -> BadConfig:
        """The error for a field that should be something else."""
        return BadConfig(
            f"config.json: {self.path}{name} should be {wanted}, found {_shown(self.fields.get(name))}"
        )

    def integer(self, name: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """A whole number from 1 to `most`; null stands for the default."""
        value = self.fields.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "a whole number")
        if not 0 < value <= most:
            raise BadConfig(f"config.json: {self.path}{name} = {_shown(value)} is out of range (1 .. {most})")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite positive number; only a field that is not there stands for the default."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if not _finite(value) or value <= 0:
            raise BadConfig(
                f"config.json: {self.path}{name} = {_shown(value)} must be a positive, finite number"
            )
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false; null stands for the default."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def word(self, name: str, default: str) -> str:
        """A text; only a field that is not there stands for the default."""
        value = self.fields.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def words(self, name: str) -> list[str] | None:
        """A list of texts, None where there is none."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise self.wrong(name, "a list of texts")
        return list(value)

    def token(self, name: str, default: int | None) -> int | None:
        """A token id or null; only a field that is not there stands for the default."""
        value = self.fields.get(name, default)
        if value is not None and not _is_token(value):
            raise self.wrong(name, "a token id")
        return None if value is None else int(value)

    def tokens(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """One token id or a list of them; null stands for none."""
        value = self.fields.get(name, list(default))
        ids = [] if value is None else [value] if _is_token(value) else value
        if not isinstance(ids, list | tuple) or not all(map(_is_token, ids)):
            raise self.wrong(name, "a token id or a list of them")
        return tuple(ids)

    def inner(self, name: str) -> ConfigFields | None:
        """The object in a field, None where there is none."""
        value = self.fields.get(name)
        return None if value is None else ConfigFields(value, f"{self.path}{name}.")

    def refuse_unknown(self, known: set[str]) -> None:
        """Raises BadConfig for the first field whose effect on the computation is not known."""
        for name in self.fields:
            if name not in known and not str(name).startswith("_"):
                raise BadConfig(
                    f"config.json: unknown field {self.path}{name}; canvaslm does not know what it changes "
                    "(a newer checkpoint than this version? upgrade canvaslm, "
                    "or remove the field if it is inert)"
                )


def check_tokens(vocab_size: int, ids: Sequence[int | None]) -> None:
    """Raises BadConfig for a special token id outside the vocabulary."""
    for token in ids:
        if token is not None and not 0 <= token < vocab_size:
            raise BadConfig(
                f"config.json: special token id {_shown(token)} is outside the vocabulary of {vocab_size}"
            )


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all doubles
        return False


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value out of a file, safe to print: escaped and cut."""
    try:
        text = ascii(value)
    except ValueError:  # more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 120 else text[:117] + "..."


__all__ = ["ConfigFields", "ModelConfig", "check_tokens"]
