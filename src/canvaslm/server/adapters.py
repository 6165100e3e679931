"""Which model an answer is written with: the one that is served, or that with adapters.

A request says it by the name of an adapter in `model`, as vLLM's clients do, or by numbers and scales in
`lora`, as llama-server's do. What is running keeps its adapters when their names go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ..errors import BadModelFile, CanvasError, NotFound, UsageError
from .bridge import Bridge
from .problems import Problem, problem_of

if TYPE_CHECKING:
    from ..session import Session
    from ..session.adapters import ShelvedAdapter
    from ..types import AdapterUse

_SHOWN = 100  # characters of a name that a client asked for
_TAG = ":latest"  # which Ollama's clients put behind names


@dataclass(frozen=True)
class ServedModel:
    """What a request is answered with. `name`: what its answer calls the model."""

    name: str
    adapters: tuple[AdapterUse, ...] = ()


class ServedAdapters:
    """The adapters of the session that a bridge serves. For the event loop; files are read elsewhere.

    `folder`: adapters may be loaded from below it, by anybody who may ask; None: from nowhere. `any_model`:
    names that nobody knows stand for the model.
    """

    def __init__(self, bridge: Bridge, *, folder: Path | None = None, any_model: bool = False) -> None:
        """Raises NotFound where there is no such folder."""
        if folder is not None and not folder.is_dir():
            raise NotFound(f"{folder}: there is no such folder to load adapters from")
        self.folder = None if folder is None else folder.resolve()
        self._bridge, self._any_model = bridge, any_model
        self._scales: dict[int, float] = {}  # of adapters by number, for requests that say nothing of them
        self._reader = ThreadPoolExecutor(1, "canvaslm-adapters")

    @property
    def shelf(self) -> tuple[ShelvedAdapter, ...]:
        """All that there are, in the order in which they came."""
        return self._session.adapters.shelf

    def name_of(self, model: str | None) -> str:
        """What an answer calls the model that a client asks for. Raises Problem (404) for one that is not
        here."""
        return self._named(model)[0]

    async def choose(self, model: str | None, lora: Sequence[tuple[int, float]] | None = None) -> ServedModel:
        """What a request is answered with, `lora` by numbers. Raises Problem."""
        name, adapter = self._named(model)
        if adapter is not None and lora is not None:
            raise Problem(
                400, f"lora: the model {adapter!r} is an adapter already: leave one of them out", param="lora"
            )
        if adapter is not None:
            return ServedModel(name, await self._uses([(adapter, 1.0)]))
        scales = self._scales if lora is None else self._checked(lora)
        chosen = [(one.name, scales[one.number]) for one in self.shelf if scales.get(one.number)]
        return ServedModel(name, await self._uses(chosen))

    async def load(self, name: str, path: str, *, replace: bool = False, called: str = "lora_path") -> None:
        """Takes an adapter from the folder. `called`: the client's word for the path. Raises Problem."""
        found = self._inside(path, called)
        if is_own(name, self._session.name):
            raise Problem(400, f"{name!r} is the model's own name", param="lora_name", code="invalid_value")
        try:
            await self._apart(lambda: self._session.adapters.load(name, found, replace=replace))
        except CanvasError as error:
            raise self._refusal(error) from error

    def unload(self, name: str) -> None:
        """Forgets an adapter. Raises Problem."""
        self._allowed()
        try:
            self._session.adapters.unload(name)
        except NotFound as error:
            raise Problem(404, str(error), param="lora_name", code="not_found") from error

    def scale_of(self, number: int) -> float:
        """With which requests get an adapter that say nothing of adapters."""
        return self._scales.get(number, 0.0)

    def set_scales(self, lora: Sequence[tuple[int, float]]) -> None:
        """From now on for requests that say nothing; those not named get none. Raises Problem."""
        self._scales = self._checked(lora)

    def place_of(self, one: ShelvedAdapter) -> str:
        """Where an adapter came from, as far as clients are to know: below the folder, by a hub id, else its
        last part."""
        if one.place is None or one.path is None:
            return ""
        if one.place.hub_id is not None:
            return one.place.hub_id
        if self.folder is not None and self.folder in one.path.parents:
            return one.path.relative_to(self.folder).as_posix()
        return one.path.name

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    # -- within ----------------------------------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        return self._bridge.session

    def _named(self, model: str | None) -> tuple[str, str | None]:
        """What the answer calls the model, and the adapter that the name is of."""
        session = self._session
        if not model or not model.strip():
            return session.name, None
        names = session.adapters.names
        for name in (model, model.removesuffix(_TAG)):
            if name in names:
                return name, name
        if self._any_model or is_own(model, session.name):
            return session.name, None
        from ..session.adapters import known

        told = known((session.name, *names))
        raise Problem(
            404, f"model {model[:_SHOWN]!r} not found: {told}", param="model",
            code="model_not_found",
        )  # fmt: skip

    async def _uses(self, chosen: list[tuple[str, float]]) -> tuple[AdapterUse, ...]:
        """Adapters that were dropped from memory are read again, while others are answered."""
        if not chosen:
            return ()
        adapters, loaded = self._session.adapters, {one.name for one in self.shelf if one.loaded}
        try:
            if all(name in loaded for name, _ in chosen):
                return adapters.uses(chosen)
            uses: tuple[AdapterUse, ...] = await self._apart(lambda: adapters.uses(chosen))
            return uses
        except CanvasError as error:
            raise self._refusal(error) from error

    def _checked(self, lora: Sequence[tuple[int, float]]) -> dict[int, float]:
        numbers = [one.number for one in self.shelf]
        for number, _ in lora:
            if number not in numbers:
                told = f"known are {', '.join(map(str, numbers))}" if numbers else "none is loaded"
                raise Problem(400, f"lora: there is no adapter with id {number}: {told}", param="lora")
        return dict(lora)

    def _allowed(self) -> Path:
        if self.folder is None:
            raise Problem(
                403, "adapters are loaded and unloaded only where the server was started with --adapter-dir",
                code="adapters_are_fixed",
            )  # fmt: skip
        return self.folder

    def _inside(self, path: str, called: str) -> Path:
        """A folder below the one that is allowed. Of what is elsewhere nothing is said, not even whether it
        is there."""
        folder = self._allowed()
        kinds = (PurePosixPath(path), PureWindowsPath(path))
        if not path.strip() or "\0" in path or any(kind.is_absolute() or kind.drive for kind in kinds):
            raise Problem(
                400, f"{called}: name a folder below that of --adapter-dir, without a leading slash",
                param=called, code="invalid_value",
            )  # fmt: skip
        try:
            found = (folder / path).resolve()
            there = found.is_dir()
        except (OSError, RuntimeError, ValueError):  # links in a circle, names too long
            raise self._missing(path, called) from None
        if folder not in found.parents or ".." in kinds[0].parts or ".." in kinds[1].parts:
            raise Problem(403, f"{called}: leads out of the folder of --adapter-dir", param=called)
        if not there:
            raise self._missing(path, called)
        return found

    def _missing(self, path: str, called: str) -> Problem:
        told = f"{called}: there is no folder {path[:_SHOWN]!r} below that of --adapter-dir"
        return Problem(404, told, param=called, code="not_found")

    def _refusal(self, error: CanvasError) -> Problem:
        """What went wrong with a file, in words that do not say where the folder is."""
        told = str(error)
        for path in (self.folder, *(one.path.parent for one in self.shelf if one.path is not None)):
            told = told if path is None else told.replace(f"{path}/", "")
        if isinstance(error, NotFound):
            return Problem(404, told, param="lora_name", code="not_found")
        if isinstance(error, UsageError | BadModelFile):
            return Problem(400, told, param="lora_name", code="invalid_value")
        return problem_of(error)

    async def _apart(self, function: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._reader, function)


def is_own(asked: str, name: str) -> bool:
    """Whether a client means the model itself: by its name, with Ollama's tag, or as a hub has it."""
    return asked.removesuffix(_TAG).rsplit("/", 1)[-1] == name.removesuffix(_TAG).rsplit("/", 1)[-1]


__all__ = ["ServedAdapters", "ServedModel", "is_own"]
