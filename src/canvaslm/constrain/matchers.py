"""llguidance, the library that knows grammars: its tokenizers of our vocabularies, its matchers of documents.

Loaded when a grammar is asked for, so that all else works without it (`pip install 'canvaslm[constrain]'`).
A matcher is at one place of one document: it says which tokens may follow, and takes one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .limits import PARSER, on_a_deep_stack
from .vocabulary import BYTES, Vocabulary

Matcher = Any  # llguidance.LLMatcher, or a `SymbolWalker`
Ids = NDArray[np.int64]

_LONGEST_MESSAGE = 240


def library() -> ModuleType:
    """llguidance. Raises UsageError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise UsageError(
            "grammars need llguidance, which is not installed: pip install 'canvaslm[constrain]'", "grammar"
        ) from None
    module: ModuleType = llguidance
    return module


@dataclass(frozen=True)
class _Tokens:
    """What llguidance wants to know of a tokenizer. It encodes a byte at a time: we ask for masks that no
    encoding narrows (`no_forcing`), so it hardly does."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    byte_ids: tuple[int, ...]
    bos_token_id: int | None = None

    def __call__(self, text: bytes | str) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        return [self.byte_ids[byte] for byte in data if self.byte_ids[byte] >= 0]


@dataclass(eq=False)
class SymbolWalker:
    """A matcher over symbols that takes tokens of the whole vocabulary, symbol by symbol.

    Otherwise as llguidance's. It has no mask of all tokens, which at 262,144 takes a walk over all of them
    and is too much for some grammars, but says of single tokens whether they may follow.
    """

    matchers: Matchers
    matcher: Matcher

    def deep_copy(self) -> SymbolWalker:
        return SymbolWalker(self.matchers, self.matcher.deep_copy())

    def consume_tokens(self, tokens: Sequence[int]) -> bool:
        return bool(self.matcher.consume_tokens(self.matchers.symbols_of(tokens)))

    def consume_token(self, token: int) -> bool:
        return self.consume_tokens([token])

    def validate_tokens(self, tokens: Sequence[int]) -> int:
        """How many of the tokens may follow. One without symbols may not."""
        symbols, lengths = [], []
        for token in tokens:
            symbols += self.matchers.symbols_of([token])
            lengths.append(len(symbols))
        valid = self.matcher.validate_tokens(symbols) if symbols else 0
        count = sum(length <= valid for length in lengths)
        return next((i for i in range(count) if not self.matchers.tokens[tokens[i]]), count)

    def compute_bitmask(self) -> bytes:
        """Of single symbols."""
        return bytes(self.matcher.compute_bitmask())

    def compute_ff_bytes(self) -> bytes:
        return bytes(self.matcher.compute_ff_bytes())

    def is_accepting(self) -> bool:
        return bool(self.matcher.is_accepting())

    def is_error(self) -> bool:
        return bool(self.matcher.is_error())


@dataclass(eq=False)
class Matchers:
    """Makes the matchers of one vocabulary. They know its single bytes and control tokens, by their ids."""

    tokens: list[bytes]  # as llguidance knows them; b"" takes no part
    controls: frozenset[int]
    ends: tuple[int, ...]
    byte_ids: Ids  # [256]
    symbol_ids: Ids  # what a search may write: bytes by value, then control tokens that do not end an answer
    _made: list[Any] = field(default_factory=list, repr=False)  # the tokenizer, once it is wanted
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Matchers:
        """Those of a vocabulary: equal ones for the same object, as long as it lives."""
        with _all_lock:
            found = _all.get(vocabulary)
            if found is None:
                found = _all[vocabulary] = cls._new(vocabulary)
        return found

    @classmethod
    def _new(cls, vocabulary: Vocabulary) -> Matchers:
        controls = set(vocabulary.controls) | set(vocabulary.ends)
        texts = [data if isinstance(data, bytes) else b"" for data in vocabulary.token_bytes]
        tokens = [vocabulary.names[i] if i in controls else text for i, text in enumerate(texts)]
        byte_ids = vocabulary.byte_ids[:BYTES]
        others = sorted(controls - {*vocabulary.ends, vocabulary.pad})
        symbol_ids = np.array([*byte_ids[byte_ids >= 0], *others], np.int64)
        return cls(tokens, frozenset(controls), vocabulary.ends, byte_ids, symbol_ids)

    def matcher(self, grammar: str) -> Matcher:
        """A matcher over symbols. Raises UsageError with llguidance's words where it refuses a grammar."""
        guidance, tokenizer = library(), self._tokenizer()
        limits = guidance.LLParserLimits(**PARSER)
        made = on_a_deep_stack(lambda: guidance.LLMatcher(tokenizer, grammar, limits=limits, log_level=0))
        if made.is_error():
            raise UsageError(f"the grammar cannot be used: {short_message(made.get_error())}", "grammar")
        return made

    def split(self, text: bytes) -> list[int]:
        """Tokens that say `text`, each as long as can be."""
        ids, longest = self._ids
        found, begin = [], 0
        while begin < len(text):
            end = min(len(text), begin + longest)
            while end > begin + 1 and text[begin:end] not in ids:
                end -= 1
            found.append(ids[text[begin:end]])
            begin = end
        return found

    def symbols_of(self, tokens: Sequence[int]) -> list[int]:
        """What tokens say, a symbol a token."""
        found: list[int] = []
        for token in tokens:
            found += [token] if token in self.controls else self.byte_ids[list(self.tokens[token])].tolist()
        return found

    @cached_property
    def _ids(self) -> tuple[dict[bytes, int], int]:
        """{what a token says: the token}, and the length of the longest; a single byte's own token counts."""
        ids = {text: i for i, text in enumerate(self.tokens) if text and i not in self.controls}
        ids |= {bytes((byte,)): int(token) for byte, token in enumerate(self.byte_ids)}
        return ids, max(map(len, ids))

    def _tokenizer(self) -> Any:
        with self._lock:
            if not self._made:
                guidance = library()
                part = {*self.symbol_ids.tolist(), *self.controls}
                texts = [text if token in part else b"" for token, text in enumerate(self.tokens)]
                described = _Tokens(texts, sorted(self.controls), self.ends[0], tuple(self.byte_ids.tolist()))
                wrapped = guidance.TokenizerWrapper(described)
                self._made.append(guidance.LLTokenizer(wrapped, eos_token=list(self.ends), slices=[]))
            return self._made[0]


# Vocabularies are compared by identity; one that nobody holds any more is forgotten.
_all: WeakKeyDictionary[Vocabulary, Matchers] = WeakKeyDictionary()
_all_lock = threading.Lock()


def allowed(mask: bytes, ids: Ids) -> NDArray[np.bool_]:
    """Which of the tokens `ids` [n] a matcher's mask (a bit a token) allows."""
    words = np.frombuffer(mask, np.uint32)
    bits: NDArray[np.bool_] = (words[ids >> 5] >> (ids & 31).astype(np.uint32) & 1).astype(bool)
    return bits


def which_follow(walker: SymbolWalker, tokens: Sequence[int]) -> NDArray[np.bool_]:
    """Which of the tokens [n] may follow."""
    return np.array([walker.validate_tokens([token]) == 1 for token in tokens], bool)


def takes(matcher: Matcher, tokens: Sequence[int]) -> bool:
    """Moves a matcher on over tokens; False, and of no use any more, where one of them may not follow."""
    return not tokens or bool(matcher.consume_tokens(list(tokens)))


def following(matcher: Matcher) -> tuple[bytes, bool]:
    """A matcher's mask, and whether nothing need follow.

    In this order: a matcher that was first asked whether it accepts, or what is forced, fails to compute
    a mask where a control token is forced (llguidance 1.9.1, `NoExtensionBias`).
    """
    mask: bytes = matcher.compute_bitmask()
    return mask, bool(matcher.is_accepting())


def forced(matcher: Matcher) -> bytes:
    """The bytes that alone can follow, up to a control token: llguidance writes it as 0xFF and a number."""
    text: bytes = matcher.deep_copy().compute_ff_bytes()
    return text.partition(b"\xff")[0]


def short_message(error: str) -> str:
    """llguidance's words in one line, without the excerpt of the grammar that may follow."""
    line = " ".join(part.strip() for part in error.split("\n   1 |")[0].splitlines() if part.strip())
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 3] + "..."


__all__ = [
    "Ids", "Matcher", "Matchers", "SymbolWalker", "allowed", "following", "forced", "library",
    "short_message", "takes", "which_follow",
]  # fmt: skip
