"""The tokenizer that a GGUF file's metadata describes: `tokenizer.ggml.*`.

Model `gemma4` is BPE with byte fallback over text whose spaces became U+2581; merges run over the whole text.
The normaliser, the (idle) pre-tokeniser and the decoder are those of Gemma's tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ..errors import BadModelFile
from .decoding import BYTE_TOKEN, Decoding
from .tokenizer_parts import TokenizerParts

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENS = 4_000_000
MAX_MERGES = 8_000_000
MAX_TOKEN_LENGTH = 4096  # characters
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
_PREFIX = "tokenizer.ggml."
_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}


def read_gguf(metadata: Mapping[str, Any], source: str) -> TokenizerParts:
    """Checks `metadata` (full key -> plain Python value) and builds the tokenizer. Raises BadModelFile."""
    fields = {k[len(_PREFIX) :]: v for k, v in metadata.items() if k.startswith(_PREFIX)}
    for key in ("tokens", "token_type", "scores", "merges"):
        if isinstance(value := fields.get(key, ()), (str, bytes)) or not hasattr(value, "__len__"):
            raise BadModelFile(f"{source}: {_PREFIX}{key} is no list.")
    return from_gguf_fields(
        model=fields.get("model", ""),
        tokens=fields.get("tokens", ()),
        token_type=fields.get("token_type"),
        scores=fields.get("scores"),
        merges=fields.get("merges", ()),
        ids={role: fields[key] for role, key in _ROLES.items() if key in fields},
        add_bos=bool(fields.get("add_bos_token", True)),
        add_space_prefix=bool(fields.get("add_space_prefix", False)),
        source=source,
    )


def from_gguf_fields(
    *,
    model: str,
    tokens: Sequence[str],
    merges: Sequence[str],
    token_type: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    ids: Mapping[str, int] | None = None,
    add_bos: bool = True,
    add_space_prefix: bool = False,
    source: str = "GGUF file",
) -> TokenizerParts:
    """Builds the tokenizer from the single fields; `ids` maps bos, eos, unk, pad, mask to token ids.

    Scores play no part in BPE: they are only checked for their number. Raises BadModelFile.
    """
    if model != "gemma4":
        raise BadModelFile(f"{source}: tokenizer.ggml.model is {model!r}; only 'gemma4' is supported.")
    types = [NORMAL] * len(tokens) if token_type is None else token_type
    vocab = _vocab(tokens, source)
    _check_lengths(tokens, {"token_type": types, "scores": scores}, source)
    _check_types(tokens, types, source)
    named = _named(ids or {}, len(tokens), source)
    pairs = _merges(merges, vocab, source)
    unk = tokens[named["unk"]] if "unk" in named else None
    backend = _backend(vocab, pairs, unk, add_space_prefix, source)
    _add_user_defined(backend, [t for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED])
    control = frozenset(t for t, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN))
    decoding = Decoding(((SPACE, " "),), byte_fallback=True, strip_start=int(add_space_prefix))
    return TokenizerParts(backend, decoding, control, source, named, add_bos)


def _vocab(tokens: Sequence[str], source: str) -> dict[str, int]:
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise BadModelFile(f"{source}: {len(tokens)} tokens; 1 to {MAX_TOKENS} were expected.")
    for index, token in enumerate(tokens):
        if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN_LENGTH:
            raise BadModelFile(
                f"{source}: token {index} is not a string of 1 to {MAX_TOKEN_LENGTH} characters."
            )
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        index = next(i for i, t in enumerate(tokens) if vocab[t] != i)
        raise BadModelFile(
            f"{source}: token {tokens[index]!r} has two ids, {index} and {vocab[tokens[index]]}."
        )
    return vocab


def _check_lengths(tokens: Sequence[str], lists: Mapping[str, Sequence[Any] | None], source: str) -> None:
    for name, values in lists.items():
        if values is not None and len(values) != len(tokens):
            raise BadModelFile(
                f"{source}: tokenizer.ggml.{name} has {len(values)} entries for {len(tokens)} tokens."
            )


def _check_types(tokens: Sequence[str], types: Sequence[int], source: str) -> None:
    """Types in range, and byte tokens that are what they say: none at all, or one
    for each of the 256 bytes."""
    found: set[int] = set()
    for index, kind in enumerate(types):
        if kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
            raise BadModelFile(f"{source}: token {index} has type {kind!r}; types are 1 to 6.")
        if kind == BYTE:
            match = BYTE_TOKEN.fullmatch(tokens[index])
            if match is None:
                raise BadModelFile(
                    f"{source}: byte token {index} is {tokens[index]!r}, not of the form <0xNN>."
                )
            found.add(int(match[1], 16))
    if found and len(found) != 256:
        missing = min(set(range(256)) - found)
        raise BadModelFile(f"{source}: {len(found)} of 256 byte tokens; <0x{missing:02X}> is missing.")


def _named(ids: Mapping[str, int], size: int, source: str) -> dict[str, int]:
    for role, token_id in ids.items():
        if isinstance(token_id, bool) or not isinstance(token_id, Integral) or not 0 <= token_id < size:
            raise BadModelFile(f"{source}: {_ROLES[role]} is {token_id!r}, outside the {size} tokens.")
    return {role: int(token_id) for role, token_id in ids.items()}


def _merges(merges: Sequence[str], vocab: Mapping[str, int], source: str) -> list[tuple[str, str]]:
    if len(merges) > MAX_MERGES:
        raise BadModelFile(f"{source}: {len(merges)} merges; at most {MAX_MERGES} are read.")
    pairs: list[tuple[str, str]] = []
    for index, merge in enumerate(merges):
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if left not in vocab or right not in vocab or left + right not in vocab:
            shown = repr(merge)[:80]
            raise BadModelFile(f"{source}: merge {index} ({shown}) does not join two tokens into a third.")
        pairs.append((left, right))
    return pairs


def _backend(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    unk: str | None,
    add_space_prefix: bool,
    source: str,
) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models, normalizers

    try:
        model = models.BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    except Exception as error:
        raise BadModelFile(f"{source}: the vocabulary cannot be used: {error}") from error
    backend = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    prefixed = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
    backend.normalizer = prefixed if add_space_prefix else spaces
    return backend


def _add_user_defined(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> None:
    """User-defined tokens are taken whole wherever they stand in a text, before any merge."""
    from tokenizers import AddedToken

    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in texts])


__all__ = ["MAX_MERGES", "MAX_TOKENS", "MAX_TOKEN_LENGTH", "from_gguf_fields", "read_gguf"]
