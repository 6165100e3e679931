"""Remembers encoded sequences, so that a prompt that begins like an earlier one need not be encoded again.

A tree of spans: a node stands for one block of tokens behind those of its parent, and owns their
keys and values. Sequences that begin alike share nodes, and running ones read the parts of nodes in
place. A last, partial block is a leaf; whoever continues from it, or from the middle of a block,
gets a copy of that one block.

Equal tokens are not always equal context. Each identity (an adapter, say) has a tree of its own, and a token
that does not say what stands there is told apart by its content (see `symbols_of`).
"""

from __future__ import annotations

import hashlib
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .kv import KVCache
from .parts import Part, SharedSpan, usable

Tokens = npt.NDArray[np.int64]


class _Node:
    __slots__ = ("children", "full", "parent", "sliding", "tokens")

    def __init__(self, tokens: Tokens, parent: _Node | None, full: Part | None, sliding: Part | None) -> None:
        self.tokens, self.parent = tokens, parent
        self.full, self.sliding = full, sliding  # sliding None: forgotten
        self.children: dict[bytes, _Node] = {}

    @property
    def key(self) -> bytes:
        return self.tokens.tobytes()

    def parts(self) -> list[Part]:
        return [part for part in (self.full, self.sliding) if part is not None]

    def nearest(self, tokens: Tokens) -> tuple[_Node | None, int]:
        """The child to continue from that shares the longest prefix with tokens, and its length.

        Nothing continues in the middle of a child without its sliding part.
        """
        found = (
            (node, _common(node.tokens, tokens))
            for node in self.children.values()
            if node.sliding is not None
        )
        return max(found, key=lambda pair: pair[1], default=(None, 0))


class PrefixCache:
    """The last sequences' keys and values within `limit` bytes, least recently used leaves out first.

    What running sequences read is neither freed nor counted. Not thread-safe.
    """

    def __init__(self, limit: int, new: Callable[[int], KVCache]) -> None:
        """new: makes an empty cache for so many expected tokens."""
        self.limit, self._new = limit, new
        empty = new(0)
        self._block, self._reach = empty.block, empty.reach
        self._roots: dict[str, _Node] = {}  # one tree for each identity of the context
        # Least recently used first; a child comes before its parent.
        self._nodes: OrderedDict[_Node, None] = OrderedDict()
        self._lent: weakref.WeakSet[KVCache] = weakref.WeakSet()
        self._secret = secrets.token_bytes(16)

    @property
    def bytes(self) -> int:
        """Memory that only this cache keeps, in bytes."""
        pinned = self._pinned()
        return sum(_size(node) for node in self._nodes if not _is_pinned(node, pinned))

    def take(
        self,
        tokens: tuple[int, ...],
        live: Iterable[tuple[Sequence[int], KVCache]] = (),
        expected: int = 0,
        identity: str = "",
        align: int = 1,
        least: int = 1,
    ) -> KVCache | None:
        """A cache that holds the longest proper prefix of tokens found here or in a
        `live` sequence's, or None.

        One token at least is left to the caller, so that every prompt encodes something. `live` sequences
        must have the same identity. tokens: of `symbols_of`, where any has a content key. `expected`: see
        KVCache. `align`: only a multiple of so many tokens is taken, where what is known of a token depends
        on the whole of its block. `least`: fewer tokens are as good as none.
        """
        wanted = np.asarray(tokens[:-1], dtype=np.int64)
        spans, count = self._remembered(self._roots.get(identity) or _new_root(), wanted)
        for encoded, cache in live:
            usable_here = cache.usable(_common(np.asarray(encoded, dtype=np.int64), wanted))
            if usable_here > count:
                count = usable_here
                spans = [cache.span(i) for i in range(-(-count // self._block))]
        while count % align:
            whole = (span.sliding is not None for span in spans)
            count = usable(whole, count - count % align, self._block, self._reach)
        if count < max(least, 1):
            return None
        taken = self._new(expected)
        taken.begin(spans, count)
        self._lent.add(taken)
        return taken

    def put(self, tokens: tuple[int, ...], cache: KVCache, identity: str = "") -> None:
        """Remembers a finished sequence, and closes its cache. tokens: the `cache.length` encoded ones."""
        if self.limit > 0:
            node = self._roots.setdefault(identity, _new_root())
            whole, path = np.asarray(tokens, dtype=np.int64), []
            for index, start in enumerate(range(0, len(whole), self._block)):
                node = self._place(node, whole[start : start + self._block], cache, index)
                path.append(node)
            self._touch(path)
        cache.close()
        self._lent.discard(cache)
        self._trim()

    def clear(self) -> None:
        """Forgets everything; running sequences keep what they read."""
        self._nodes.clear()
        self._roots.clear()

    def symbols_of(self, tokens: Sequence[int], content_keys: Mapping[int, str]) -> tuple[int, ...]:
        """What `take` and `put` compare instead of tokens, some of which stand for contents: {index: key}.

        A token with a key becomes a negative number, a digest of both under a secret of this cache: nobody
        can look for two keys that give the same one.
        """
        symbols = list(tokens)
        for index, key in content_keys.items():
            words = f"{tokens[index]} {key}".encode()
            digest = hashlib.blake2b(words, digest_size=8, key=self._secret).digest()
            symbols[index] = -1 - (int.from_bytes(digest) >> 1)
        return tuple(symbols)

    def _remembered(self, root: _Node, wanted: Tokens) -> tuple[list[SharedSpan], int]:
        """The spans of the longest prefix that can be continued, and its length."""
        path = self._whole_blocks(root, wanted)
        best, most = path, self._usable(path, len(path) * self._block)
        # Behind the last whole block, a part of one; behind an earlier one only if what follows
        # it cannot be continued.
        for level in range(len(path), -1, -1):
            if most > level * self._block:
                break
            parent = path[level - 1] if level else root
            start = level * self._block
            child, shared = parent.nearest(wanted[start : start + self._block])
            if child is not None and (count := self._usable([*path[:level], child], start + shared)) > most:
                best, most = [*path[:level], child], count
        best = best[: -(-most // self._block)]
        self._touch(best)
        return [_span(node) for node in best], most

    def _whole_blocks(self, root: _Node, wanted: Tokens) -> list[_Node]:
        """The nodes that hold the first blocks of wanted."""
        path, node = [], root
        for start in range(0, len(wanted) - self._block + 1, self._block):
            child = node.children.get(wanted[start : start + self._block].tobytes())
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def _usable(self, path: list[_Node], count: int) -> int:
        return usable((node.sliding is not None for node in path), count, self._block, self._reach)

    def _place(self, parent: _Node, tokens: Tokens, cache: KVCache, index: int) -> _Node:
        """The node for a sequence's span `index`, made if there is none that serves."""
        has_sliding = cache.has_sliding(index)
        if (same := parent.children.get(tokens.tobytes())) is not None:
            if same.sliding is None and has_sliding:
                same.sliding = cache.span(index, lasting=True).sliding
            return same
        longer, shared = parent.nearest(tokens)
        if longer is not None and shared == len(tokens):
            return longer
        span = cache.span(index, lasting=True)
        node = _Node(tokens.copy(), parent, span.full, span.sliding)
        self._forget_beginnings(parent, node)
        parent.children[node.key] = node
        self._nodes[node] = None
        return node

    def _forget_beginnings(self, parent: _Node, node: _Node) -> None:
        """What a new node extends is of no more use."""
        for child in list(parent.children.values()):
            begins = len(child.tokens) < len(node.tokens) and _common(child.tokens, node.tokens) == len(
                child.tokens
            )
            if begins and (node.sliding is not None or child.sliding is None):
                self._remove(child)

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._nodes.move_to_end(node)

    def _trim(self) -> None:
        """Drops leaves until what could be freed fits the limit."""
        pinned = self._pinned()
        spare = [node for node in self._nodes if not _is_pinned(node, pinned)]
        excess = sum(map(_size, spare)) - self.limit
        for node in spare:
            if node.children:
                continue
            # A leaf without its sliding part has become useless: nothing continues from it.
            if excess > 0 or node.sliding is None:
                excess -= _size(node)
                self._remove(node)
        self._roots = {identity: root for identity, root in self._roots.items() if root.children}

    def _remove(self, node: _Node) -> None:
        assert node.parent is not None and not node.children
        del node.parent.children[node.key]
        del self._nodes[node]

    def _pinned(self) -> set[int]:
        """Identities of the parts that running sequences hold."""
        return {id(part) for cache in self._lent for part in cache.shared()}


def _new_root() -> _Node:
    return _Node(np.empty(0, np.int64), None, None, None)


def _span(node: _Node) -> SharedSpan:
    assert node.full is not None
    return SharedSpan(node.full, node.sliding, len(node.tokens))


def _size(node: _Node) -> int:
    return sum(part.nbytes for part in node.parts())


def _is_pinned(node: _Node, pinned: set[int]) -> bool:
    return any(id(part) in pinned and part.nbytes for part in node.parts())


def _common(a: Tokens, b: Tokens) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


__all__ = ["PrefixCache"]
