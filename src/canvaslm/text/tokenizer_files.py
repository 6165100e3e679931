"""Reads and checks the tokenizer files of a checkpoint folder: tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadModelFile, NotFound
from .decoding import Decoding, decoding_from_json
from .tokenizer_parts import TokenizerParts

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENIZER_BYTES = 256 << 20  # Gemma's is 33 MB
MAX_CONFIG_BYTES = 16 << 20
_USUAL = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}


def read_text(path: Path, limit: int) -> str:
    """A UTF-8 text file of at most `limit` bytes. Raises NotFound or BadModelFile."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file. Point to a folder that has one.") from None
    except OSError as error:
        raise BadModelFile(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise BadModelFile(f"{path}: larger than {limit >> 20} MiB, which no such file should be.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadModelFile(f"{path}: not UTF-8 at byte {error.start}. Get the file again.") from error


def read_json_object(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object from a file. Raises NotFound or BadModelFile."""
    return _json_object(read_text(path, limit), str(path))


def _json_object(text: str, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{source}: not valid JSON ({error}). Get the file again.") from error
    if not isinstance(value, dict):
        raise BadModelFile(f"{source}: a JSON object was expected, not a {type(value).__name__}.")
    return value


def read_folder(folder: Path) -> TokenizerParts:
    """The tokenizer of a checkpoint folder. Raises NotFound without tokenizer.json, BadModelFile
    otherwise."""
    path = folder / "tokenizer.json"
    text = read_text(path, MAX_TOKENIZER_BYTES)
    spec = _json_object(text, str(path))
    backend = _backend(text, str(path))
    added = _added_tokens(spec, backend, str(path))
    names = _special_names(folder)
    named = _named_ids(names, backend, str(path))
    control = {token for token, special in added.items() if special} | set(names.values())
    return TokenizerParts(backend, _decoding(spec, str(path)), frozenset(control), str(path), named)


def _backend(text: str, source: str) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise BadModelFile(f"{source}: the tokenizers library refuses it: {error}") from error


def _decoding(spec: Mapping[str, Any], source: str) -> Decoding:
    try:
        return decoding_from_json(spec.get("decoder"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModelFile(f"{source}: the decoder is not supported: {error}.") from error


def _added_tokens(spec: Mapping[str, Any], backend: tokenizers.Tokenizer, source: str) -> dict[str, bool]:
    """text -> special, of `added_tokens`. The library renumbers wrong ids without a
    word, so they are checked."""
    added: dict[str, bool] = {}
    for entry in spec.get("added_tokens") or []:
        content, token_id = entry["content"], entry["id"]
        if backend.token_to_id(content) != token_id or backend.id_to_token(token_id) != content:
            raise BadModelFile(
                f"{source}: added token {content!r} claims id {token_id}, which is not free for it."
            )
        if not content:
            raise BadModelFile(f"{source}: added token {token_id} is empty.")
        added[content] = bool(entry.get("special"))
    return added


def _special_names(folder: Path) -> dict[str, str]:
    """role -> token text, from tokenizer_config.json or special_tokens_map.json, else what Gemma uses."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if not path.exists():
            continue
        config = read_json_object(path, MAX_CONFIG_BYTES)
        for role in _USUAL:
            value = config.get(f"{role}_token")
            text = value.get("content") if isinstance(value, dict) else value
            if text is not None and not isinstance(text, str):
                raise BadModelFile(f"{path}: {role}_token is no string.")
            if text:
                names[role] = text
    return names


def _named_ids(names: Mapping[str, str], backend: tokenizers.Tokenizer, source: str) -> dict[str, int]:
    named: dict[str, int] = {}
    for role, usual in _USUAL.items():
        token_id = backend.token_to_id(names.get(role, usual))
        if token_id is not None:
            named[role] = token_id
        elif role in ("bos", "eos") and role in names:
            raise BadModelFile(f"{source}: the {role} token {names[role]!r} is not in the vocabulary.")
    return named


__all__ = ["MAX_CONFIG_BYTES", "MAX_TOKENIZER_BYTES", "read_folder", "read_json_object", "read_text"]
