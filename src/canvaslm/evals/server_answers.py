"""Answers from a server: OpenAI's chat completions, many at once."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from ..client import Endpoint, Refused, fields_of
from ..errors import CanvasError, UsageError
from .answers import Answer, Conversation, Pieces

_ATTEMPTS = 5
_BUSY = (429, 503)
_WRONG = (400, 404, 422)
# Our options of an answer's form -> the keys of vLLM's `structured_outputs`; ours reads them as well.
_FORMS = {"schema": "json", "regex": "regex", "choice": "choice", "grammar": "grammar"}


class ServerAnswerer:
    """Answers with the model that a server calls `model`, `concurrency` requests in flight. Seeds and
    sampling parameters are fields of the body. `sleep` waits so many seconds."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        concurrency: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._endpoint, self._model, self._concurrency, self._sleep = endpoint, model, concurrency, sleep

    def __call__(
        self,
        conversations: Sequence[Conversation],
        seeds: Sequence[int],
        *,
        pieces: Sequence[Pieces] | None = None,
        structures: Sequence[Mapping[str, Any]] | None = None,
        **params: Any,
    ) -> Iterator[tuple[int, Answer]]:
        """Raises CanvasError when a request fails: an eval with holes is none. A busy server is asked again,
        a few times."""
        if pieces is not None:
            raise UsageError("parts of an answer cannot be given over chat completions", "tasks")
        bodies = [
            {"model": self._model, "messages": list(turns), **fields_of(params), "seed": seed, **_form(form)}
            for turns, seed, form in zip(
                conversations, seeds, structures or [{}] * len(seeds), strict=True
            )
        ]  # fmt: skip
        waiting = SimpleQueue[int]()
        for place in range(len(bodies)):
            waiting.put(place)
        done = SimpleQueue[tuple[int, Answer | Exception]]()
        # Threads that nobody waits for: after Ctrl-C the program ends though answers are under way.
        for _ in range(min(self._concurrency, len(bodies))):
            Thread(target=self._work, args=(bodies, waiting, done), daemon=True).start()
        try:
            for _ in bodies:
                place, found = done.get()
                if isinstance(found, Exception):
                    raise found
                yield place, found
        finally:
            with contextlib.suppress(Empty):
                while True:
                    waiting.get_nowait()  # what has not been sent is dropped

    def _work(
        self,
        bodies: Sequence[Mapping[str, Any]],
        waiting: SimpleQueue[int],
        done: SimpleQueue[tuple[int, Answer | Exception]],
    ) -> None:
        with contextlib.suppress(Empty):
            while True:
                place = waiting.get_nowait()
                try:
                    done.put((place, self._ask(bodies[place])))
                except Exception as error:
                    done.put((place, error))

    def _ask(self, body: Mapping[str, Any]) -> Answer:
        for attempt in range(_ATTEMPTS):
            try:
                return _answer(self._endpoint.post("/v1/chat/completions", body))
            except Refused as refused:
                if refused.status in _WRONG:
                    raise UsageError(f"{self._endpoint} refuses the request: {refused}", "url") from refused
                if refused.status not in _BUSY or attempt == _ATTEMPTS - 1:
                    raise
            except (OSError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
                raise CanvasError(f"{self._endpoint} does not answer ({why}): is it running?") from error
            self._sleep(2.0**attempt)
        raise AssertionError("the last attempt returns or raises")


def _form(structure: Mapping[str, Any]) -> dict[str, Any]:
    """The body's fields for what an answer has to be."""
    return (
        {"structured_outputs": {_FORMS[kind]: value for kind, value in structure.items()}}
        if structure
        else {}
    )


def _answer(body: Mapping[str, Any]) -> Answer:
    """Steps are those that the server tells of; a server that does not know any tells none."""
    try:
        text = body["choices"][0]["message"].get("content") or ""
    except (LookupError, TypeError, AttributeError) as error:
        raise CanvasError(f"the answer holds no message: {str(body)[:80]}") from error
    usage, timings = body.get("usage") or {}, body.get("timings") or {}
    told = timings.get("diffusion") or {}
    canvases, steps = int(told.get("n_blocks") or 0), int(told.get("n_steps") or 0)
    reads = int(told.get("n_reads") or 0)
    even = tuple(steps // canvases + (i < steps % canvases) for i in range(canvases))
    return Answer(str(text), int(usage.get("completion_tokens") or 0), even, reads)


__all__ = ["ServerAnswerer"]
