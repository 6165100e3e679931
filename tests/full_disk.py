"""A disk that takes no more: a limit on the size of files, so that the system itself refuses."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT = 20_000  # bytes: a header fits, weights do not


@contextmanager
def full_disk(limit: int = LIMIT) -> Iterator[None]:
    """No file of this process grows beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


__all__ = ["LIMIT", "full_disk"]
