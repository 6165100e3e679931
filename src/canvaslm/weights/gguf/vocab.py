"""The vocabulary between tokenizer.json and GGUF's `tokenizer.ggml.*` keys, both ways. Torch-free.

GGUF's model "gemma4" says only: byte-pair merges, bytes for what no token spells, spaces as U+2581,
nothing put in front. A tokenizer.json that does anything else cannot be carried over, and is refused by
the name of the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import BadModelFile
from ...model.config import ModelConfig
from ...model.registry import family_of
from ..safetensors_.header import shown
from .fields import BYTE_TOKEN, TokenizerFields
from .write import (
    f32s,
    flag,
    i32s,
    string,
    strings,
    u32,
)

__all__ = ["SPACE", "tokenizer_json", "tokenizer_settings", "vocabulary_metadata"]

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# llama.cpp's converter gives every token this score: merges alone decide.
_SCORE = -1000.0
# Markers that its converter stores as user-defined, so that they show in output;
# readers take them as control.
_VISIBLE = {
    "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>",
    '<|"|>',
}  # fmt: skip
_SPECIAL_KEYS = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "mask": "mask_token",
}
_MARKER = re.compile(r"<\|.+>|<.+\|>", re.DOTALL)


def vocabulary_metadata(
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    config: ModelConfig,
    stops: Sequence[int],
    *,
    where: str,
) -> dict[str, bytes]:
    """The keys for a parsed tokenizer.json, and tokenizer_config.json (`settings`).
    `stops`: ids that end an answer.

    Raises BadModelFile naming `where` and the field for what GGUF's "gemma4" tokenizer does not do.
    """
    model = tokenizer.get("model")
    if not isinstance(model, Mapping):
        raise BadModelFile(f"{where}: field 'model' is missing")
    _refuse_other_kinds(tokenizer, model, where)
    tokens, types = _tokens(tokenizer, model, config.vocab_size, where)
    index = {token: i for i, token in enumerate(tokens)}
    return {
        "tokenizer.ggml.model": string("gemma4"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.scores": f32s([_SCORE] * len(tokens)),
        "tokenizer.ggml.token_type": i32s(types),
        "tokenizer.ggml.merges": strings(_merges(model, where)),
        **_special_ids(settings, config, stops, index),
        "tokenizer.ggml.add_bos_token": flag(bool(settings.get("add_bos_token", True))),
        "tokenizer.ggml.add_space_prefix": flag(False),
    }


def _refuse_other_kinds(tokenizer: Mapping[str, Any], model: Mapping[str, Any], where: str) -> None:
    if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback"):
        raise BadModelFile(f"{where}: only byte-pair encoding with byte_fallback can be written to GGUF")
    normalizer = tokenizer.get("normalizer")
    expected = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if normalizer != expected:
        raise BadModelFile(
            f"{where}: normalizer {shown(normalizer)} cannot be written to GGUF (only ' ' -> U+2581)"
        )


def _tokens(
    tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int, where: str
) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; ids without a token become unused ones."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for token, i in _entries(model.get("vocab"), where):
        if not 0 <= i < size:
            raise BadModelFile(f"{where}: token {shown(token)} has id {i}, the model has {size} tokens")
        tokens[i], types[i] = token, BYTE if BYTE_TOKEN.fullmatch(token) else NORMAL
    for entry in tokenizer.get("added_tokens") or ():
        token, i = entry.get("content"), entry.get("id")
        if not isinstance(token, str) or not isinstance(i, int) or not 0 <= i < size:
            raise BadModelFile(f"{where}: added token {shown(entry)} has no place among {size} tokens")
        visible = token in _VISIBLE or not entry.get("special")
        tokens[i], types[i] = token, USER_DEFINED if visible else CONTROL
    if len(set(tokens)) != size:
        raise BadModelFile(f"{where}: two ids have the same token")
    return tokens, types


def _entries(vocab: Any, where: str) -> Iterable[tuple[str, int]]:
    good = isinstance(vocab, Mapping) and all(isinstance(i, int) for i in vocab.values())
    if not good:
        raise BadModelFile(f"{where}: model.vocab should be an object of token: id")
    return vocab.items()  # type: ignore[no-any-return]


def _merges(model: Mapping[str, Any], where: str) -> list[str]:
    """ "left right" for each merge; tokenizers writes pairs, older files strings."""
    merges = []
    for item in model.get("merges") or ():
        if isinstance(item, str):
            merges.append(item)
        elif isinstance(item, list) and len(item) == 2 and all(isinstance(half, str) for half in item):
            merges.append(f"{item[0]} {item[1]}")
        else:
            raise BadModelFile(f"{where}: merge {shown(item)} is not a pair of tokens")
    return merges


def _special_ids(
    settings: Mapping[str, Any], config: ModelConfig, stops: Sequence[int], index: Mapping[str, int]
) -> dict[str, bytes]:
    ids: dict[str, int] = {}
    for name, key in _SPECIAL_KEYS.items():
        token = settings.get(key)
        token = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(token, str) and token in index:
            ids[name] = index[token]
    ids["padding"] = config.pad_token_id
    if config.bos_token_id is not None:
        ids["bos"] = config.bos_token_id
    if stops:
        ids["eos"] = stops[0]
    # The family's end of turn ends an answer without being named; one more end has a key of its own.
    end_of_turn = index.get(family_of(config).markers.turn_end)
    more = [token for token in stops[1:] if token != end_of_turn]
    if more:
        ids["eot"] = more[0]
    return {f"tokenizer.ggml.{name}_token_id": u32(i) for name, i in ids.items()}


def tokenizer_json(fields: TokenizerFields) -> dict[str, Any]:
    """A tokenizer.json that encodes and decodes as the vocabulary of a GGUF file says."""
    added = [i for i, kind in enumerate(fields.types) if kind in (CONTROL, USER_DEFINED, UNKNOWN)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(fields, i) for i in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": _post_processor(fields),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _special(fields, "unknown"),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(fields.tokens)},
            "merges": [list(pair) for pair in fields.merges],
        },
    }


def _added_token(fields: TokenizerFields, i: int) -> dict[str, Any]:
    token = fields.tokens[i]
    special = fields.types[i] != USER_DEFINED or _MARKER.fullmatch(token) is not None
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": token, **flags, "special": special}


def _post_processor(fields: TokenizerFields) -> dict[str, Any] | None:
    if not fields.add_bos or "bos" not in fields.special_ids:
        return None
    bos = fields.tokens[fields.special_ids["bos"]]
    mark = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [mark, first],
        "pair": [mark, first, mark, second],
        "special_tokens": {bos: {"id": bos, "ids": [fields.special_ids["bos"]], "tokens": [bos]}},
    }


def _special(fields: TokenizerFields, name: str) -> str | None:
    return fields.tokens[fields.special_ids[name]] if name in fields.special_ids else None


def tokenizer_settings(fields: TokenizerFields) -> dict[str, Any]:
    """The tokenizer_config.json to go with it."""
    named = {key: _special(fields, name) for name, key in _SPECIAL_KEYS.items() if name in fields.special_ids}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "add_bos_token": fields.add_bos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
