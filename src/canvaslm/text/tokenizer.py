"""Strings to token ids and back, over the `tokenizers` library.

Two kinds of text go in and are never mixed: what people, tools and files wrote (`encode`; special tokens in
it stay plain text) and what a chat template wrote (`encode_pieces`; its markers become control ids).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadModelFile, UsageError
from ..families import ChatMarkers
from .decoding import StreamDecoder
from .gguf_tokenizer import read_gguf
from .markers import Special, looks_like_marker, merge_text
from .tokenizer_files import read_folder
from .tokenizer_parts import TokenizerParts

if TYPE_CHECKING:
    import tokenizers

# What a tokenizer is read with when nobody says which family's it is.
GEMMA = ChatMarkers()
_SHORT = 4096  # characters


class Tokenizer:
    """A vocabulary with its encoding rules. Safe to share between threads.

    Attributes: `bos_id`, `eos_id`, `pad_id`, `unk_id`, `mask_id` (None where the file names none), `adds_bos`
    (whether a prompt starts with BOS; templates write it themselves), `source` (file name, for messages).
    """

    def __init__(self, parts: TokenizerParts, markers: ChatMarkers = GEMMA) -> None:
        self.markers = markers
        self.source = parts.source
        self.decoding = parts.decoding
        self.adds_bos = parts.adds_bos
        self._vocab = _checked_vocab(parts)
        self._texts = {i: t for t, i in self._vocab.items()}
        named = dict(parts.named)
        self.bos_id, self.eos_id, self.pad_id = named.get("bos"), named.get("eos"), named.get("pad")
        self.unk_id, self.mask_id = named.get("unk"), named.get("mask")
        self._control = {t: self._vocab[t] for t in sorted(self._control_texts(parts, named))}
        self._control_ids = frozenset(self._control.values())
        self._forbidden = self._control_ids - {self.unk_id}
        self._backend = _sealed(parts.backend, self._control)

    def _control_texts(self, parts: TokenizerParts, named: Mapping[str, int]) -> set[str]:
        texts = {t for t in (*parts.control, *self.markers.control) if t in self._vocab}
        texts |= {self._texts[i] for i in named.values()}
        return texts | {t for t in self._vocab if looks_like_marker(t)}

    @classmethod
    def from_folder(cls, folder: str | Path, markers: ChatMarkers = GEMMA) -> Tokenizer:
        """Reads `tokenizer.json` and `tokenizer_config.json` in `folder`.

        Raises NotFound without a tokenizer.json, BadModelFile where a file is broken
        or of an unsupported kind.
        """
        return cls(read_folder(Path(folder)), markers)

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], source: str = "GGUF file", markers: ChatMarkers = GEMMA
    ) -> Tokenizer:
        """Builds the tokenizer from a GGUF file's `tokenizer.ggml.*` metadata (plain Python values).

        Raises BadModelFile on broken or hostile entries and on a tokenizer model that is not supported.
        """
        return cls(read_gguf(metadata, source), markers)

    # -- the vocabulary --------------------------------------------------------------------------------------

    @cached_property
    def vocab_size(self) -> int:
        """Highest id + 1."""
        return max(self._texts) + 1

    @property
    def control_texts(self) -> tuple[str, ...]:
        """Texts of all control tokens."""
        return tuple(self._control)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end the model's turn: EOS and the family's `ends`, those that exist."""
        ids = [self.eos_id, *(self._control.get(m) for m in self.markers.ends)]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def marker_id(self, marker: str) -> int | None:
        """The id of a control token by its text (`"<|turn>"`), None where the vocabulary has none."""
        return self._control.get(marker)

    def is_control(self, token_id: int) -> bool:
        """Whether the id is a control token: a marker, BOS, EOS, padding, unknown or mask."""
        return token_id in self._control_ids

    def token_text(self, token_id: int) -> str:
        """The vocabulary's entry for an id as written there (`▁the`, `<0x0A>`). Raises UsageError."""
        try:
            return self._texts[token_id]
        except KeyError:
            raise UsageError(f"token id {token_id} is not in the vocabulary of {self.source}") from None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; empty for an id that the vocabulary does not use."""
        text = self._texts.get(token_id)
        if text is None:
            return b""
        return text.encode() if token_id in self._control_ids else self.decoding.to_bytes(text)

    # -- encoding --------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Special tokens written in it are text like any other; no BOS is added."""
        if not text:
            return []
        try:
            ids = self._encoded(text)
        except (TypeError, UnicodeEncodeError):  # lone surrogates, which JSON may carry
            ids = self._encoded(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return ids if self._forbidden.isdisjoint(ids) else self._spelled_out(ids)

    def _encoded(self, text: str) -> list[int]:
        """As the library encodes it. `encode` holds Python's lock for as long as it takes, seconds for a
        megabyte, and no other thread runs meanwhile; batches do not, but cost more to start."""
        if len(text) <= _SHORT:
            return self._backend.encode(text, add_special_tokens=False).ids
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids

    def _spelled_out(self, ids: Iterable[int]) -> list[int]:
        """Replaces control ids that the vocabulary's own merges produce by the ids of their characters."""
        plain: list[int] = []
        for token_id in ids:
            if token_id not in self._forbidden:
                plain.append(token_id)
                continue
            for char in self._texts[token_id]:
                spelled = self._backend.encode(char, add_special_tokens=False).ids
                plain += [i for i in spelled if i not in self._forbidden]
        return plain

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Ids of a rendered prompt: `Special` pieces as control ids, all other strings as plain text.

        A `Special` that the vocabulary lacks is encoded as text.
        """
        known = (p if p in self._control else str(p) for p in pieces)
        ids: list[int] = []
        for piece in merge_text(known):
            ids += [self._control[piece]] if isinstance(piece, Special) else self.encode(piece)
        return ids

    # -- decoding --------------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """The bytes of a list of ids, which may end in half a character."""
        return b"".join(self.token_bytes(i) for i in ids if not (skip_special and i in self._control_ids))

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of a list of ids; invalid UTF-8 becomes U+FFFD. Control tokens are
        left out or written out."""
        decoder = StreamDecoder(self, skip_special=skip_special)
        return decoder.feed(ids) + decoder.close()


def _checked_vocab(parts: TokenizerParts) -> dict[str, int]:
    """token text -> id, no id twice and none far beyond the number of tokens. Raises BadModelFile."""
    vocab: dict[str, int] = parts.backend.get_vocab(with_added_tokens=True)
    if not vocab:
        raise BadModelFile(
            f"{parts.source}: the vocabulary is empty. Get the tokenizer again from its source."
        )
    ids = set(vocab.values())
    if len(ids) != len(vocab):
        raise BadModelFile(
            f"{parts.source}: {len(vocab) - len(ids)} token ids are used twice. "
            "Get the file again from its source."
        )
    if max(ids) >= 4 * len(vocab) + 1024:
        raise BadModelFile(f"{parts.source}: token id {max(ids)} is out of range for {len(vocab)} tokens.")
    for name, token_id in parts.named.items():
        if token_id not in ids:
            raise BadModelFile(f"{parts.source}: the {name} token id {token_id} is not in the vocabulary.")
    return vocab


def _sealed(backend: tokenizers.Tokenizer, control: Iterable[str]) -> tokenizers.Tokenizer:
    """Marks every control token as special and makes the library read specials in text as text."""
    from tokenizers import AddedToken

    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend


__all__ = ["GEMMA", "Tokenizer"]
