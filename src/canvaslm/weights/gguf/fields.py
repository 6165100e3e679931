"""What a GGUF file says of the model in its metadata: its family and sizes, sampling
defaults, vocabulary, template.

Keys of `diffusion.*`: llama.cpp's pull request 24423. Those of the sizes are the family's
(`model.registry`). Torch-free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...diffusion.params import PARAMETERS
from ...errors import BadConfig, BadModelFile
from ...model.config import ModelConfig
from ...model.registry import Family, families, family_of_architecture
from ..safetensors_.header import shown
from .file import GGUFFile

__all__ = [
    "BYTE_TOKEN",
    "ENTROPY_BOUND",
    "GENERATION_KEYS",
    "TokenizerFields",
    "architecture",
    "family_of_file",
    "read_gguf_config",
    "read_gguf_generation",
    "read_tokenizer",
]

MAX_TOKENS = 1 << 20
MAX_MERGES = 1 << 22
_TOKEN_TYPES = range(1, 7)
_BYTE = 6
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

# GGUF key -> (name in generation_config.json, type).
GENERATION_KEYS: dict[str, tuple[str, type]] = {
    about.gguf: (name, about.kind) for name, about in PARAMETERS.items() if about.gguf
}
ENTROPY_BOUND = "diffusion.eb_entropy_bound"


@dataclass(frozen=True)
class TokenizerFields:
    """The vocabulary of a GGUF file, checked: ids lie within it, merges join tokens that exist.

    `types`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. `merges` as pairs, best first.
    """

    model: str
    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]
    special_ids: dict[str, int]  # "bos", "eos", "unknown", "padding", "mask", "eot" -> id, those the file has
    add_bos: bool
    add_space_prefix: bool
    chat_template: str | None


def architecture(file: GGUFFile) -> str:
    """`general.architecture`. Raises BadModelFile for one that canvaslm does not run."""
    return _architecture_of(file)[0]


def family_of_file(file: GGUFFile) -> Family:
    """The family of a GGUF file's model. Raises BadModelFile for one that canvaslm does not run."""
    return _architecture_of(file)[1]


def _architecture_of(file: GGUFFile) -> tuple[str, Family]:
    name = file.text("general.architecture", None)
    if name is None:
        raise BadModelFile(
            f"{file.path}: key 'general.architecture' is missing, so what model it is cannot be told"
        )
    if file.text("general.type", None) == "adapter":
        raise BadModelFile(
            f"{file.path}: is an adapter, not a model: name its model, and this as its adapter"
        )
    family = family_of_architecture(name)
    if family is not None:
        return name, family
    known = ", ".join(f"'{f.gguf.architectures[0]}'" for f in families() if f.gguf is not None)
    hint = "; it is a vision tower, name the language model's file" if name == "clip" else ""
    raise BadModelFile(
        f"{file.path}: architecture {shown(name)} is not supported; canvaslm runs {known} files{hint}"
    )


def read_gguf_config(file: GGUFFile) -> ModelConfig:
    """The model's sizes. Raises BadModelFile naming the key that is missing, wrong or not supported."""
    names = family_of_file(file).gguf
    assert names is not None
    ids = _special_ids(file)
    try:
        return names.read_config(file, ids, _stop_ids(file, ids))
    except BadConfig as error:
        raise BadModelFile(f"{file.path}: its metadata contradict each other: {_plain(error)}") from error


def read_gguf_generation(file: GGUFFile) -> dict[str, Any]:
    """The file's sampling defaults under the names of `generation_config.json`; only what the file sets."""
    found: dict[str, Any] = {}
    for key, (name, kind) in GENERATION_KEYS.items():
        if key in file.metadata:
            found[name] = file.integer(key) if kind is int else _decimal(file.number(key))
    if ENTROPY_BOUND in file.metadata:
        bound = _decimal(file.number(ENTROPY_BOUND))
        found["sampler_config"] = {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": bound}
    ids = _special_ids(file)
    stops = _stop_ids(file, ids)
    if stops:
        found["eos_token_id"] = list(stops)
    names = {"bos": "bos_token_id", "padding": "pad_token_id"}
    found.update({name: ids[key] for key, name in names.items() if key in ids})
    return found


def read_tokenizer(file: GGUFFile) -> TokenizerFields:
    """The vocabulary and chat template. Raises BadModelFile naming the key and the item at fault."""
    model = file.text("tokenizer.ggml.model", None)
    if model is None:
        raise BadModelFile(f"{file.path}: key 'tokenizer.ggml.model' is missing: the file has no vocabulary")
    if model != "gemma4":
        raise BadModelFile(f"{file.path}: tokenizer.ggml.model is {shown(model)}; only 'gemma4' is supported")
    tokens = _tokens(file)
    types = _types(file, tokens)
    return TokenizerFields(
        model=model,
        tokens=tokens,
        types=types,
        merges=_merges(file, set(tokens)),
        special_ids=_special_ids(file),
        add_bos=bool(file.metadata.get("tokenizer.ggml.add_bos_token", True)),
        add_space_prefix=bool(file.metadata.get("tokenizer.ggml.add_space_prefix", False)),
        chat_template=file.text("tokenizer.chat_template", None),
    )


def _special_ids(file: GGUFFile) -> dict[str, int]:
    tokens = file.array("tokenizer.ggml.tokens")
    limit = len(tokens) if tokens is not None else 2**31
    found = {}
    for name in ("bos", "eos", "unknown", "padding", "mask", "eot"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.metadata:
            found[name] = file.integer(key)
            if not 0 <= found[name] < limit:
                raise BadModelFile(
                    f"{file.path}: key {key!r} = {found[name]} lies outside the vocabulary of {limit}"
                )
    return found


def _stop_ids(file: GGUFFile, ids: dict[str, int]) -> tuple[int, ...]:
    """End of text and end of turn: the family's end of turn ends an answer whether or not a key says so."""
    stops = [ids[name] for name in ("eos", "eot") if name in ids]
    tokens = file.array("tokenizer.ggml.tokens")
    end_of_turn = None if tokens is None else tokens.find(family_of_file(file).markers.turn_end)
    if end_of_turn is not None:
        stops.append(end_of_turn)
    return tuple(dict.fromkeys(stops))


def _tokens(file: GGUFFile) -> list[str]:
    array = file.array("tokenizer.ggml.tokens")
    if array is None or not 0 < len(array) <= MAX_TOKENS:
        count = 0 if array is None else len(array)
        raise BadModelFile(
            f"{file.path}: key 'tokenizer.ggml.tokens' has {count} tokens (1 .. {MAX_TOKENS} are read)"
        )
    tokens = array.strings()
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise BadModelFile(f"{file.path}: key 'tokenizer.ggml.tokens': token {shown(twice)} appears twice")
    return tokens


def _types(file: GGUFFile, tokens: list[str]) -> list[int]:
    key = "tokenizer.ggml.token_type"
    array = file.array(key)
    if array is None:
        return [_BYTE if BYTE_TOKEN.fullmatch(token) else 1 for token in tokens]
    if len(array) != len(tokens):
        raise BadModelFile(f"{file.path}: key {key!r} has {len(array)} entries for {len(tokens)} tokens")
    types = array.numbers()
    for index, kind in enumerate(types):
        if kind not in _TOKEN_TYPES:
            raise BadModelFile(f"{file.path}: key {key!r}: item {index} is {shown(kind)}, not 1 to 6")
        if kind == _BYTE and not BYTE_TOKEN.fullmatch(tokens[index]):
            raise BadModelFile(
                f"{file.path}: token {index} is marked as a byte, but reads {shown(tokens[index])}"
            )
    return [int(kind) for kind in types]


def _merges(file: GGUFFile, known: set[str]) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.merges"
    array = file.array(key)
    if array is None:
        raise BadModelFile(f"{file.path}: key {key!r} is missing")
    if len(array) > MAX_MERGES:
        raise BadModelFile(f"{file.path}: key {key!r} has {len(array)} items; at most {MAX_MERGES} are read")
    pairs = []
    for index, merge in enumerate(array.strings()):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in known or right not in known or left + right not in known:
            raise BadModelFile(
                f"{file.path}: key {key!r}: item {index}, {shown(merge)}, does not join two tokens to a third"
            )
        pairs.append((left, right))
    return pairs


def _decimal(value: float) -> float:
    """0.1 stored as fp32 reads 0.10000000149; the shortest decimal that stores to the
    same fp32 is what was meant."""
    return float(str(np.float32(value)))


def _plain(error: BadConfig) -> str:
    return str(error).removeprefix("config.json: ")
