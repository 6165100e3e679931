"""Stop strings over a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError

MAX_STOPS = 64
MAX_LENGTH = 1024  # characters


class StopStrings:
    """Passes text on up to the earliest match of any stop string; the match and all after it are dropped.

    Of two matches the one that starts first wins, of two that start together the longer one, so the result
    does not depend on how the text was cut into pieces. Text that may still become a match is held back.
    `matched` is the stop string found, None until then.
    """

    def __init__(self, stops: str | Sequence[str]) -> None:
        """Raises UsageError (param `stop`) on an empty stop string, too many or too long ones."""
        values = [stops] if isinstance(stops, str) else list(stops)
        if len(values) > MAX_STOPS:
            raise UsageError(f"{len(values)} stop strings; at most {MAX_STOPS} are allowed", param="stop")
        for value in values:
            if not isinstance(value, str) or not 0 < len(value) <= MAX_LENGTH:
                raise UsageError(f"a stop string must have 1 to {MAX_LENGTH} characters", param="stop")
        self._stops = sorted(set(values), key=len, reverse=True)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that is certain to stand before any stop string; empty after a match."""
        if self.matched is not None:
            return ""
        self._held += text
        open_from = self._undecided()
        found = self._earliest(before=open_from)
        if found is not None:
            return self._finish(*found)
        passed, self._held = self._held[:open_from], self._held[open_from:]
        return passed

    @property
    def held(self) -> str:
        """What is held back."""
        return self._held

    def close(self) -> str:
        """The end of the stream: what was held back, up to a match in it."""
        if self.matched is not None:
            return ""
        found = self._earliest(before=len(self._held))
        if found is not None:
            return self._finish(*found)
        passed, self._held = self._held, ""
        return passed

    def _undecided(self) -> int:
        """The first place from which the held text could grow into a stop string (its length if none)."""
        held = self._held
        first = len(held)
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(held)), len(held) - first, -1):
                if held.endswith(stop[:size]):
                    first = len(held) - size
                    break
        return first

    def _earliest(self, before: int) -> tuple[int, str] | None:
        """The earliest match that starts before a place; the longest first among equals."""
        found: tuple[int, str] | None = None
        for stop in self._stops:
            place = self._held.find(stop)
            if 0 <= place < before and (found is None or place < found[0]):
                found = (place, stop)
        return found

    def _finish(self, place: int, stop: str) -> str:
        self.matched = stop
        passed, self._held = self._held[:place], ""
        return passed


__all__ = ["MAX_LENGTH", "MAX_STOPS", "StopStrings"]
