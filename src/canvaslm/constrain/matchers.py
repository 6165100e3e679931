"""llguidance, the library that knows grammars: its tokenizers of our vocabularies, its matchers of documents.

Loaded when a grammar is asked for, so that all else works without it (`pip install 'canvaslm[constrain]'`).
A matcher is at one place of one document: it says which tokens may follow, and takes one.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .limits import GRAMMAR_BYTES, PARSER, on_a_deep_stack
from .vocabulary import BYTES, Vocabulary

Matcher = Any  # llguidance.LLMatcher, or a `SymbolWalker`
Ids = NDArray[np.int64]

A_COPY, A_MASK = 4, 8  # symbols that a copy of a matcher, and a mask, count as: about the time they take
_LONGEST_MESSAGE = 240
# What may hold `<[106]>` in llguidance's Lark and mean the text, and what means a token. What is not closed
# goes on to the end: else each of many quotes would be followed there.
_LARK_PIECE = re.compile(
    r'"(?:[^"\\]|\\.?)*"?|/(?:[^/\\]|\\.?)+/?|(?:#|//)[^\n]*|<\[(\^?)([0-9,-]+)\]>', re.DOTALL
)
_ID = re.compile("([0-9]{1,9})(?:-([0-9]{1,9}))?")


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
    bos_token_id: int | None = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode("utf-8"))


@dataclass(eq=False)
class SymbolCount:
    """What a grammar was asked: so many symbols, a copy and a mask counting as some."""

    symbols: int = 0


@dataclass(eq=False)
class SymbolWalker:
    """A matcher over symbols that takes tokens of the whole vocabulary, symbol by symbol.

    Otherwise as llguidance's. It has no mask of all tokens, which at 262,144 takes a walk over all of them
    and is too much for some grammars, but says of single tokens whether they may follow. It and all its
    copies count together.
    """

    matchers: Matchers
    matcher: Matcher
    asked: SymbolCount = field(default_factory=SymbolCount)

    def deep_copy(self) -> SymbolWalker:
        self.asked.symbols += A_COPY
        return SymbolWalker(self.matchers, self.matcher.deep_copy(), self.asked)

    def consume_tokens(self, tokens: Sequence[int]) -> bool:
        return self._consume(self.matchers.symbols_of(tokens))

    def _consume(self, symbols: list[int]) -> bool:
        self.asked.symbols += len(symbols)
        return bool(self.matcher.consume_tokens(symbols))

    def consume_token(self, token: int) -> bool:
        return self.consume_tokens([token])

    def validate_tokens(self, tokens: Sequence[int]) -> int:
        """How many of the tokens may follow. One without symbols may not."""
        symbols, lengths = [], []
        for token in tokens:
            more = self.matchers.symbols_of((token,))
            if not more:
                break
            symbols += more
            lengths.append(len(symbols))
        self.asked.symbols += len(symbols)
        valid = self.matcher.validate_tokens(symbols) if symbols else 0
        return bisect_right(lengths, valid)

    def follow(self, symbols: Sequence[int]) -> bool:
        """Whether all the symbols may follow."""
        self.asked.symbols += len(symbols)
        return bool(self.matcher.validate_tokens(symbols) == len(symbols))

    def compute_bitmask(self) -> bytes:
        """Of single symbols."""
        self.asked.symbols += A_MASK
        return bytes(self.matcher.compute_bitmask())

    def forced(self, start: bytes = b"") -> bytes:
        """The bytes that alone can follow `start`, up to a control token; none where it may not follow."""
        ahead = self.deep_copy()
        if start and not ahead._consume(list(start)):
            return b""
        text = _forced(ahead.matcher)
        self.asked.symbols += len(text)
        return text

    def is_accepting(self) -> bool:
        return bool(self.matcher.is_accepting())

    def is_error(self) -> bool:
        return bool(self.matcher.is_error())


@dataclass(eq=False)
class Matchers:
    """Makes the matchers of one vocabulary. They know symbols: a byte by its value, from 256 on the control
    tokens in order of their ids. So a mask has some tens of bytes, however large the vocabulary is."""

    tokens: list[bytes]  # what each says, a control token its name; b"" takes no part
    controls: tuple[int, ...]  # in order: symbol 256 + i is the token controls[i]
    ends: tuple[int, ...]
    byte_ids: Ids  # [256]
    symbols: Ids  # what a search may write: bytes with a token, then controls that do not end an answer
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
        controls = sorted({*vocabulary.controls, *vocabulary.ends})
        texts = [data if isinstance(data, bytes) else b"" for data in vocabulary.token_bytes]
        for token in controls:
            texts[token] = vocabulary.names[token]
        byte_ids = vocabulary.byte_ids[:BYTES]
        others = [
            BYTES + i for i, token in enumerate(controls) if token not in (*vocabulary.ends, vocabulary.pad)
        ]
        symbols = np.array([*np.nonzero(byte_ids >= 0)[0], *others], np.int64)
        return cls(texts, tuple(controls), vocabulary.ends, byte_ids, symbols)

    def matcher(self, grammar: str) -> Matcher:
        """A matcher over symbols. Raises UsageError with llguidance's words where it refuses a grammar."""
        guidance, tokenizer = library(), self._tokenizer()
        limits = guidance.LLParserLimits(**PARSER)
        made = on_a_deep_stack(lambda: guidance.LLMatcher(tokenizer, grammar, limits=limits, log_level=0))
        if made.is_error():
            raise UsageError(f"the grammar cannot be used: {short_message(made.get_error())}", "grammar")
        return made

    def interpreter(self, grammar: str) -> Any:
        """A `LLInterpreter` of a grammar that `matcher` takes: slower, and it tells of what it does."""
        guidance, tokenizer = library(), self._tokenizer()
        limits = guidance.LLParserLimits(**PARSER)
        options = {"enable_backtrack": False, "enable_ff_tokens": False, "log_level": 0, "limits": limits}
        made = on_a_deep_stack(lambda: guidance.LLInterpreter(tokenizer, grammar, **options))
        made.start_without_prompt()
        return made

    def in_symbols(self, lark: str) -> str:
        """A grammar that names tokens by their ids, `<[106]>`, with the numbers of their symbols instead.
        Raises UsageError for ids that the vocabulary does not have, and where it names too many."""
        added = 0

        def piece(match: re.Match[str]) -> str:
            nonlocal added
            if match[2] is None:
                return match.group()
            symbols = self._symbols_named(match[2])
            added += len(symbols)
            if added > GRAMMAR_BYTES:
                raise UsageError("the grammar names too many tokens by their ids", "grammar")
            return f"<[{match[1]}{symbols}]>"

        return _LARK_PIECE.sub(piece, lark)

    def _symbols_named(self, ids: str) -> str:
        """The symbols of tokens such as `4,7-9`; where these have none, one that never comes."""
        tokens, symbols = self._numbered
        named = np.zeros(self._never + 2, bool)
        for part in ids.split(","):
            match = _ID.fullmatch(part)
            begin, end = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if begin > end:
                return ids  # llguidance has the words for it
            if end >= len(self.tokens):
                raise UsageError(
                    f"the grammar names the token {end}, and the vocabulary ends at {len(self.tokens) - 1}",
                    "grammar",
                )
            first, last = np.searchsorted(tokens, (begin, end + 1))
            named[symbols[first:last]] = True
        named[self._never] = not named.any()
        edges = np.nonzero(np.diff(named, prepend=False))[0].reshape(-1, 2).tolist()
        return ",".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in edges)

    @property
    def _never(self) -> int:
        """A symbol that no token has."""
        return BYTES + len(self.controls)

    @cached_property
    def _numbered(self) -> tuple[Ids, Ids]:
        """The tokens that are symbols, in order, and the symbol of each."""
        found = {int(token): byte for byte, token in enumerate(self.byte_ids) if token >= 0}
        found = dict(sorted((found | self._control_symbols).items()))
        return np.array(list(found), np.int64), np.array(list(found.values()), np.int64)

    @cached_property
    def _control_symbols(self) -> dict[int, int]:
        return {token: BYTES + i for i, token in enumerate(self.controls)}

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
        """What tokens say, symbol by symbol."""
        found: list[int] = []
        for token in tokens:
            control = self._control_symbols.get(token)
            found += self.tokens[token] if control is None else (control,)
        return found

    def tokens_of(self, symbols: Sequence[int]) -> list[int]:
        """Tokens, each as long as can be, that say the symbols."""
        found: list[int] = []
        run = bytearray()
        for symbol in symbols:
            if symbol < BYTES:
                run.append(symbol)
                continue
            found += [*self.split(bytes(run)), self.controls[symbol - BYTES]]
            run.clear()
        return [*found, *self.split(bytes(run))]

    @cached_property
    def _ids(self) -> tuple[dict[bytes, int], int]:
        """{what a token says: the token}, and the length of the longest; a single byte's own token counts."""
        ids = {text: i for i, text in enumerate(self.tokens) if text and i not in self._control_symbols}
        ids |= {bytes((byte,)): int(token) for byte, token in enumerate(self.byte_ids)}
        return ids, max(map(len, ids))

    def _tokenizer(self) -> Any:
        with self._lock:
            if not self._made:
                guidance = library()
                texts = [bytes((byte,)) for byte in range(BYTES)]
                texts += [self.tokens[token] for token in self.controls] + [b""]
                ends = [self._control_symbols[token] for token in self.ends]
                described = _Tokens(texts, list(range(BYTES, self._never)), ends[0])
                wrapped = guidance.TokenizerWrapper(described)
                self._made.append(guidance.LLTokenizer(wrapped, eos_token=ends, slices=[]))
            return self._made[0]


# Vocabularies are compared by identity; one that nobody holds any more is forgotten.
_all: WeakKeyDictionary[Vocabulary, Matchers] = WeakKeyDictionary()
_all_lock = threading.Lock()


def allowed(mask: bytes, symbols: Ids) -> NDArray[np.bool_]:
    """Which of the symbols [n] a matcher's mask (a bit a symbol) allows."""
    bits: NDArray[np.bool_] = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[symbols] == 1
    return bits


def allows(mask: bytes, symbol: int) -> bool:
    """Whether a matcher's mask allows one symbol."""
    return bool(mask[symbol >> 3] >> (symbol & 7) & 1)


def which_follow(walker: SymbolWalker, tokens: Sequence[int], mask: bytes) -> list[bool]:
    """Which of the tokens may follow. mask: the walker's; it tells of most without a look at the grammar."""
    found = []
    for token in tokens:
        symbols = walker.matchers.symbols_of((token,))
        if not symbols or symbols[0] >= BYTES:  # a mask has one bit of all ends
            found.append(walker.validate_tokens((token,)) == 1)
        else:
            first = allows(mask, symbols[0])
            rest = len(symbols) > 1
            found.append(first and not (rest and not walker.follow(symbols)))
    return found


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


def _forced(matcher: Matcher) -> bytes:
    """What alone can follow: llguidance writes a control token as 0xFF and a number. Moves the matcher on."""
    text: bytes = matcher.compute_ff_bytes()
    return text.partition(b"\xff")[0]


def short_message(error: str) -> str:
    """llguidance's words in one line, without the excerpt of the grammar that may follow."""
    line = " ".join(part.strip() for part in error.split("\n   1 |")[0].splitlines() if part.strip())
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 3] + "..."


__all__ = [
    "Ids", "Matcher", "Matchers", "SymbolCount", "SymbolWalker", "allowed", "allows", "following", "library",
    "short_message", "takes", "which_follow",
]  # fmt: skip
