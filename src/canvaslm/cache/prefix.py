"""Remembers encoded sequences, so that a prompt that begins like an earlier one need not be encoded again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .kv import KVCache


class _Entry:
    def __init__(self, tokens: Sequence[int], cache: KVCache) -> None:
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.cache = cache


class PrefixCache:
    """The last sequences' caches, least recently used out first, within `limit` bytes of memory.

    Entries are never written to: a hit hands out a copy of the common prefix.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: list[_Entry] = []  # most recently used last

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(entry.cache.bytes for entry in self._entries)

    def take(
        self,
        tokens: tuple[int, ...],
        live: Iterable[tuple[Sequence[int], KVCache]] = (),
        expected: int = 0,
    ) -> KVCache | None:
        """A copy holding the longest proper prefix of tokens found here or in a `live` sequence's cache, or None.

        One token at least is left to the caller, so that every prompt encodes something. `expected`: see KVCache.
        """
        wanted = np.asarray(tokens[:-1], dtype=np.int64)
        candidates = [*self._entries, *(_Entry(encoded, cache) for encoded, cache in live)]
        best, count = None, 0
        for entry in candidates:
            shared = entry.cache.reusable(_common(entry.tokens, wanted))
            if shared > count:
                best, count = entry, shared
        if best is None:
            return None
        if best in self._entries:
            self._entries.remove(best)
            self._entries.append(best)
        return best.cache.fork(count, expected)

    def put(self, tokens: tuple[int, ...], cache: KVCache) -> None:
        """Remembers a finished sequence's cache, which the caller gives up. tokens: the `cache.length` encoded ones."""
        entry = _Entry(tokens, cache)
        # What the new entry extends is of no more use.
        self._entries = [e for e in self._entries if _common(e.tokens, entry.tokens) < len(e.tokens)]
        self._entries.append(entry)
        while self._entries and self.bytes > self.limit:
            self._entries.pop(0)

    def clear(self) -> None:
        self._entries.clear()


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


__all__ = ["PrefixCache"]
