"""The dialects that the server speaks. A new one is a folder beside this file, with a
router, and a line here.

A route reads its body into a `GenerationRequest`, calls `service.start` and words the events of its choices:

    @router.post("/api/chat", responses=errors(...))
    async def chat(body: ChatBody, http: Request, service: Ready) -> Response:
        wanted = GenerationRequest(messages=..., params=..., names={"max_new_tokens": "num_predict"})
        answers = await service.start(wanted)
        if body.stream:
            chunks = wording_errors(lines(answers), word_error)
            return Stream(chunks, answers.close, limits=service.limits,
            media_type="application/x-ndjson", pulse=b"")
        (choice,) = await unless_gone(http, gather(answers, 1))
        return JsonAnswer(whole(choice))

What it raises (`Problem`, any `CanvasError`) is answered in the envelope of the dialect whose path it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from ..problems import Problem, openai_envelope
from .anthropic import messages as anthropic
from .inception import routes as inception
from .llama_server import adapters as llama_adapters
from .llama_server import infill as llama_infill
from .llama_server import routes as llama
from .ollama import create as ollama_create
from .ollama import models as ollama_models
from .ollama import routes as ollama
from .openai import chat as openai_chat
from .openai import completions as openai_completions
from .openai import decisions as openai_decisions
from .openai import models
from .openai import responses as openai_responses
from .systemone import routes as systemone
from .vllm import routes as vllm


@dataclass(frozen=True)
class Dialect:
    """Routes, the paths (and all below them) whose errors are its own, and how it words an error.

    `undeclared`: its clients send JSON without saying so, or with the content type of `curl -d`. `invalid`:
    the status of what is wrong with a body, 400 elsewhere.
    """

    name: str
    routers: tuple[APIRouter, ...]
    paths: tuple[str, ...] = ()
    envelope: Callable[[Problem], dict[str, Any]] = openai_envelope
    undeclared: bool = False
    invalid: int = 400


OPENAI = Dialect(
    "openai",
    (
        openai_chat.router, openai_completions.router, openai_responses.router, openai_decisions.router,
        models.router,
    ),
)  # fmt: skip
LLAMA = Dialect("llama-server", (llama.router, llama_infill.router, llama_adapters.router))
VLLM = Dialect("vllm", (vllm.router,))
INCEPTION = Dialect("inception", (inception.router,))
ANTHROPIC = Dialect("anthropic", (anthropic.router,), ("/v1/messages",), anthropic.envelope)
OLLAMA = Dialect(
    "ollama",
    (ollama.router, ollama_models.router, ollama_create.router),
    ("/api",),
    ollama.envelope,
    undeclared=True,
)
SYSTEM_ONE = Dialect(
    "system one", (systemone.router,), ("/v1/systemone",), systemone.envelope, invalid=systemone.INVALID
)
DIALECTS: tuple[Dialect, ...] = (OPENAI, INCEPTION, ANTHROPIC, OLLAMA, LLAMA, VLLM, SYSTEM_ONE)


def envelope_of(path: str) -> Callable[[Problem], dict[str, Any]]:
    """How errors at a path are worded; OpenAI's way where nobody claims it."""
    dialect = _claiming(path)
    return openai_envelope if dialect is None else dialect.envelope


def status_of(path: str, problem: Problem) -> int:
    """The status that a problem at a path is answered with."""
    dialect = _claiming(path)
    return dialect.invalid if dialect is not None and problem.status == 400 else problem.status


def takes_undeclared(path: str) -> bool:
    """Whether a body at a path is read though it does not say that it is JSON."""
    dialect = _claiming(path)
    return dialect is not None and dialect.undeclared


def _claiming(path: str) -> Dialect | None:
    for dialect in DIALECTS:
        if any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in dialect.paths):
            return dialect
    return None


__all__ = [
    "ANTHROPIC",
    "DIALECTS",
    "INCEPTION",
    "LLAMA",
    "OLLAMA",
    "OPENAI",
    "SYSTEM_ONE",
    "VLLM",
    "Dialect",
    "envelope_of",
    "status_of",
    "takes_undeclared",
]
