"""The adapters of a session, by name: read, checked, moved to where the model is, dropped when memory ends.

    adapters.load("terse", "runs/terse")     # a folder as PEFT writes it, a GGUF file or a hub id
    session.generate("Hello", adapter="terse")

What is being written keeps its adapters, whatever happens to their names meanwhile: requests hold them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import NotFound, UsageError
from ..model.adapters import Adapter, check_adapter
from ..options import AdapterOption
from ..types import AdapterUse
from ..weights.adapters.find import AdapterPlace, find_adapter
from ..weights.adapters.read import read_adapter

if TYPE_CHECKING:
    from ..model import Model

MOST_USED = 16  # adapters of one request
MOST_NAME = 128  # characters
_LISTED = 20
_FORM = 'a name, or a list of names and of pairs of name and scale, as [("terse", 0.5)]'


@dataclass
class ShelvedAdapter:
    """`nbytes`: what it takes in memory, `loaded` or not; `place`: where it came from, None if it was added;
    `pinned`: it is not dropped for others."""

    name: str
    place: AdapterPlace | None
    nbytes: int
    pinned: bool
    adapter: Adapter | None
    number: int = 0  # its own, in the order of loading
    used: int = 0  # when it was asked for the last time, by a clock of uses
    requests: int = 0  # that asked for it

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self.adapter is not None

    @property
    def path(self) -> Path | None:
        """Where its files are."""
        return None if self.place is None else self.place.path


class Adapters:
    """The adapters of one model. Safe to share between threads.

    `limit`: bytes for all in memory, None for no limit. What does not fit drops those from files that nobody
    has asked for the longest, unless pinned. They keep their names, and are read again when asked for.
    """

    def __init__(self, model: Model, *, reserved: Sequence[str] = (), limit: int | None = None) -> None:
        """reserved: names that are no adapter's."""
        self.limit = limit
        self._model, self._reserved = model, reserved
        self._shelf: dict[str, ShelvedAdapter] = {}
        self._clock = self._count = 0
        self.loads = self.evictions = 0  # files read, and adapters that were dropped for others
        self._lock = Lock()  # of the table; reading, which takes its time, has its own
        self._reading = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """All, in the order in which they came."""
        with self._lock:
            return tuple(self._shelf)

    @property
    def shelf(self) -> tuple[ShelvedAdapter, ...]:
        """What is known of each."""
        with self._lock:
            return tuple(self._shelf.values())

    @property
    def nbytes(self) -> int:
        """Bytes of those in memory. One that was dropped while answers are written with it counts no more."""
        with self._lock:
            return self._held()

    def load(
        self, name: str, path: str | os.PathLike[str], *, pinned: bool = False, replace: bool = False
    ) -> None:
        """Reads an adapter from its folder, or from a hub (a text such as "org/name", where there is no such
        folder); `replace`: in the place of one of that name. Raises NotFound, Offline, BadModelFile, and
        UsageError for a name that is taken, for what does not fit the model, or not in memory."""
        self._check_name(name, replace)
        self.load_found(name, find_adapter(path), pinned=pinned, replace=replace)

    def load_found(
        self, name: str, place: AdapterPlace, *, pinned: bool = False, replace: bool = False
    ) -> None:
        """As `load`, of what was found already."""
        with self._reading:
            self._check_name(name, replace)
            self._put(ShelvedAdapter(name, place, 0, pinned, self._read(name, place.path)))

    def add(self, name: str, adapter: Adapter) -> None:
        """Takes one that is in memory already, which stays there. Raises UsageError as `load` does."""
        with self._reading:
            self._check_name(name)
            self._put(ShelvedAdapter(name, None, 0, True, self._moved(name, adapter)))

    def unload(self, name: str) -> None:
        """Forgets one. Raises NotFound."""
        with self._lock:
            self._known(name)
            del self._shelf[name]

    def use(self, name: str, scale: float = 1.0) -> AdapterUse:
        """One for a request, read again where it was dropped. Raises NotFound that names the known ones,
        UsageError for a scale that is no number."""
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise UsageError(f"an adapter's scale should be a finite number, found {scale!r}", "adapter")
        found = self._touched(name)
        if found is None:
            with self._reading:
                found = self._touched(name) or self._again(name)
        with self._lock:
            if name in self._shelf:  # not unloaded meanwhile
                self._shelf[name].requests += 1
        return AdapterUse(found, float(scale))

    def uses(self, given: AdapterOption) -> tuple[AdapterUse, ...]:
        """The option `adapter`: a name, or several with their scales, or what `use` gave already. Raises as
        `use` does."""
        if given is None:
            return ()
        several: Any = [given] if isinstance(given, str) else given
        if not isinstance(several, Sequence) or isinstance(several, bytes):
            raise UsageError(f"adapter should be {_FORM}, found {given!r}", "adapter")
        if len(several) > MOST_USED:
            raise UsageError(f"adapter names {len(several)}: use {MOST_USED} at most", "adapter")
        return tuple(one if isinstance(one, AdapterUse) else self.use(*_pair(one)) for one in several)

    # -- within ----------------------------------------------------------------------------------------------

    def _touched(self, name: str) -> Adapter | None:
        """What is in memory under a name; it is then the last to go."""
        with self._lock:
            found = self._known(name)
            self._clock += 1
            found.used = self._clock
            return found.adapter

    def _again(self, name: str) -> Adapter:
        with self._lock:
            before = self._known(name)
        assert before.path is not None, "what has no file is not dropped"
        # A folder that is a link now may lead out of where it was allowed to be.
        if before.path.resolve() != before.path:
            raise NotFound(f"{before.path}: is a link now: load the adapter {name!r} again")
        adapter = self._read(name, before.path)
        with self._lock:
            self._fit(name, _size(adapter))
            if self._shelf.get(name) is before:  # not unloaded meanwhile
                before.adapter, before.nbytes = adapter, _size(adapter)
        return adapter

    def _put(self, made: ShelvedAdapter) -> None:
        assert made.adapter is not None
        made.nbytes = _size(made.adapter)
        with self._lock:
            self._fit(made.name, made.nbytes)
            self._clock += 1
            made.used = self._clock
            before = self._shelf.get(made.name)
            made.number = self._count if before is None else before.number
            self._count += before is None
            self._shelf[made.name] = made

    def _fit(self, name: str, size: int) -> None:
        """Drops others until there is room. Raises UsageError, with nothing dropped, where there is none."""
        if self.limit is None:
            return
        others = [one for one in self._shelf.values() if one.name != name and one.loaded]
        kept = sum(one.nbytes for one in others if one.pinned)
        if kept + size > self.limit:
            raise UsageError(
                f"the adapter {name!r} takes {_mib(size)}, and of the {_mib(self.limit)} for adapters "
                f"{_mib(kept)} are taken for good: allow more (adapter_memory), or unload one",
                "adapter",
            )
        held = sum(one.nbytes for one in others)
        for one in sorted((one for one in others if not one.pinned), key=lambda one: one.used):
            if held + size <= self.limit:
                return
            one.adapter = None
            self.evictions += 1
            held -= one.nbytes

    def _held(self) -> int:
        return sum(one.nbytes for one in self._shelf.values() if one.loaded)

    def _known(self, name: str) -> ShelvedAdapter:
        found = self._shelf.get(name) if isinstance(name, str) else None
        if found is None:
            raise NotFound(f"there is no adapter {str(name)[:MOST_NAME]!r}: {known(tuple(self._shelf))}")
        return found

    def _check_name(self, name: str, replace: bool = False) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME or not name.isprintable():
            raise UsageError(
                f"an adapter's name should be a printable text of 1 to {MOST_NAME} characters, found "
                f"{str(name)[:MOST_NAME]!r}",
                "adapter",
            )
        if name in self._reserved:
            raise UsageError(f"{name!r} is the model's own name: call the adapter otherwise", "adapter")
        with self._lock:
            if name in self._shelf and not replace:
                raise UsageError(
                    f"there is an adapter {name!r} already: unload it, or take another name", "adapter"
                )

    def _read(self, name: str, path: Path) -> Adapter:
        """Only one at a time: under the lock of reading."""
        read = self._moved(name, read_adapter(path, self._model.config, _expert_scales(self._model)))
        self.loads += 1
        return read

    def _moved(self, name: str, adapter: Adapter) -> Adapter:
        check_adapter(adapter, self._model.adaptable(), name)
        moved = adapter.without_zeros().to(self._model.device, self._model.dtype)
        # What engines ask of it takes its time with a large one: here, and not between two of their steps.
        _ = moved.encode_digest, moved.denoise_digest
        return moved


def known(names: Sequence[str]) -> str:
    """What there is, for those who ask for what there is not."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"known are {', '.join(names[:_LISTED])}{more}" if names else "none is loaded"


def find_all(
    paths: Mapping[str, str | os.PathLike[str]] | None, limit: int | None = None
) -> dict[str, AdapterPlace]:
    """Those that are to be there from the start, looked for before a model is read: what is missing is told
    at once. Raises as `find_adapter`, and UsageError for what is no table and a `limit` below 0."""
    if paths is not None and not isinstance(paths, Mapping):
        raise UsageError(
            'adapters should be a table of names and folders, as {"terse": "runs/terse"}', "adapters"
        )
    if limit is not None and limit < 0:
        raise UsageError(f"adapter_memory = {limit} is out of range: 0 and more", "adapter_memory")
    return {name: find_adapter(path) for name, path in (paths or {}).items()}


def load_all(adapters: Adapters, places: Mapping[str, AdapterPlace], limit: int | None = None) -> None:
    """Reads them; they stay. `limit` as in `Adapters`. Raises as `Adapters.load`."""
    adapters.limit = limit
    for name, place in places.items():
        adapters.load_found(name, place, pinned=True)


def _expert_scales(model: Model) -> dict[str, Tensor]:
    """What GGUF's adapters of experts are written against, by the names of the plain model."""
    return {
        name.replace(".plain.", "."): scale.detach().float().cpu()
        for name, scale in model.named_parameters()
        if name.endswith("router.per_expert_scale")
    }


def _pair(one: Any) -> tuple[Any, Any]:
    if isinstance(one, str):
        return one, 1.0
    if not isinstance(one, Sequence) or len(one) != 2 or not isinstance(one[0], str):
        raise UsageError(f"adapter should be {_FORM}, found {one!r} in it", "adapter")
    return one[0], one[1]


def _size(adapter: Adapter) -> int:
    sides = (*adapter.encode.values(), *adapter.denoise.values())
    tensors = {id(t): t.numel() * t.element_size() for delta in sides for t in (delta.a, delta.b)}
    return sum(tensors.values())


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


__all__ = ["MOST_NAME", "MOST_USED", "Adapters", "ShelvedAdapter", "find_all", "known", "load_all"]
