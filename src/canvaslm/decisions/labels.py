"""What stands for an option on the canvas, in tokens, and the tree that all of them make.

Up to 26 options are A to Z. More are two letters: pairs that are one token each, where a vocabulary has
enough of them, else pairs of two tokens. Options may also be their own labels. A label counts in each of its
spellings, "A" and " A".

Where labels have several tokens they make a tree (a trie): at a place, a label goes on in one of the ways in
which labels with this beginning go on. One step says a place's probabilities given what stands before it, so
each place where labels part is read on a row of its own, with the beginning given. A label's probability is
the product of its branches' shares, each among the branches at its place: what writing under the constraint,
token by token, would give. (Independent places of one row would give something else.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from string import ascii_uppercase
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

Tokens = tuple[int, ...]
# What one place says: the log-probability of each branch's token, in nats.
Said = Mapping[int, float]


@dataclass(frozen=True)
class Label:
    """How it reads in the prompt, and the ways to write it, all of as many tokens."""

    text: str
    spellings: tuple[Tokens, ...]


@dataclass
class LabelTree:
    """`branches`: token -> what follows; a number is the option whose label ends there."""

    branches: dict[int, LabelTree | int] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: Sequence[Sequence[Tokens]]) -> LabelTree:
        """The tree of the spellings of each option's label. Raises UsageError for two that cannot be told
        apart."""
        root = cls()
        for option, spellings in enumerate(labels):
            for tokens in spellings:
                root._add(tokens, option)
        return root

    def _add(self, tokens: Tokens, option: int) -> None:
        node = self
        for token in tokens[:-1]:
            following = node.branches.setdefault(token, LabelTree())
            if isinstance(following, int):
                raise _alike(following, option)
            node = following
        if tokens[-1] in node.branches:
            other = node.branches[tokens[-1]]
            raise _alike(other if isinstance(other, int) else option, option)
        node.branches[tokens[-1]] = option

    def partings(self, before: Tokens = ()) -> Iterator[tuple[Tokens, Tokens]]:
        """(what stands before, the tokens that may follow) of each place where labels part, the root's first;
        of trees where none do, the root's."""
        found = list(self._partings(before))
        yield from found or [(before, tuple(self.branches))]

    def _partings(self, before: Tokens) -> Iterator[tuple[Tokens, Tokens]]:
        if len(self.branches) > 1:
            yield before, tuple(self.branches)
        for token, following in self.branches.items():
            if isinstance(following, LabelTree):
                yield from following._partings((*before, token))

    def log_shares(self, said: Mapping[Tokens, Said], count: int) -> list[float]:
        """The log-probability of each of `count` options among all. said: by what stands before."""
        shares: list[list[float]] = [[] for _ in range(count)]
        self._share(said, (), 0.0, shares)
        return [log_sum(each) for each in shares]

    def _share(
        self, said: Mapping[Tokens, Said], before: Tokens, so_far: float, shares: list[list[float]]
    ) -> None:
        branches = said.get(before, {}) if len(self.branches) > 1 else dict.fromkeys(self.branches, 0.0)
        total = log_sum([branches[token] for token in self.branches])
        for token, following in self.branches.items():
            share = so_far + branches[token] - total
            if isinstance(following, int):
                shares[following].append(share)
            else:
                following._share(said, (*before, token), share, shares)


def log_sum(values: Sequence[float]) -> float:
    """log(sum(exp(values)))."""
    peak = max(values)
    return peak + math.log(sum(math.exp(value - peak) for value in values)) if peak > -math.inf else peak


class Letters:
    """Labels of letters for one vocabulary, looked up once: a thousand encodings, where more than 26 are
    needed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def labels(self, count: int) -> list[Label]:
        """Those of so many options. Raises UsageError where a vocabulary cannot have them."""
        if len(self._single) >= count:
            return self._single[:count]
        for found in self._pairs:
            if len(found) >= count:
                return found[:count]
        raise UsageError(
            f"this vocabulary has no {count} labels of one or two letters: ask about fewer options, or with "
            'labels="values"',
            "labels",
        )

    @cached_property
    def _single(self) -> list[Label]:
        return self._found(ascii_uppercase, 1)

    @cached_property
    def _pairs(self) -> tuple[list[Label], list[Label]]:
        """Those that are one token, and those that are two."""
        pairs = [a + b for a in ascii_uppercase for b in ascii_uppercase]
        return self._found(pairs, 1), self._found(pairs, 2)

    def _found(self, texts: Iterable[str], count: int) -> list[Label]:
        return [label for text in texts if (label := _label(self._tokenizer, text, count))]


def chosen(tokenizer: Tokenizer, texts: Sequence[str], count: int) -> list[Label]:
    """Labels that a checkpoint names, each one token. Raises UsageError for too few, or for others."""
    if len(texts) < count:
        raise UsageError(f"there are {len(texts)} labels for {count} options: ask about fewer", "labels")
    found = [(text, _label(tokenizer, text, 1)) for text in texts[:count]]
    for text, label in found:
        if label is None:
            raise UsageError(f"the label {text!r} is no single token of this model", "labels")
    return [label for _, label in found if label is not None]


def values(tokenizer: Tokenizer, texts: Sequence[str], end: int) -> list[Label]:
    """Options as their own labels, each with what ends the turn behind it."""
    made = []
    for text in texts:
        tokens = tokenizer.encode(text)
        if not tokens:
            raise UsageError("an option without text cannot be its own label", "labels")
        made.append(Label(text, ((*tokens, end),)))
    return made


def _label(tokenizer: Tokenizer, text: str, count: int) -> Label | None:
    """A label whose spellings have `count` tokens; None if even the plain one has not."""
    plain, spaced = tuple(tokenizer.encode(text)), tuple(tokenizer.encode(f" {text}"))
    if len(plain) != count:
        return None
    return Label(text, (plain, spaced) if len(spaced) == count and spaced != plain else (plain,))


def _alike(one: int, other: int) -> UsageError:
    return UsageError(
        f"options {one + 1} and {other + 1} read alike: as their own labels they cannot be told apart",
        "labels",
    )


__all__ = ["Label", "LabelTree", "Letters", "Said", "Tokens", "chosen", "log_sum", "values"]
