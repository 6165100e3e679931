"""canvaslm: an engine for block-diffusion language models.

Importing this package imports no torch: `load`, `Session`, `create_app` and what they need arrive on first
use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .decisions.answers import Decision, Decisions
from .decisions.questions import Question, choice, predicate, score
from .errors import (
    BadConfig,
    BadModelFile,
    BadTemplate,
    CanvasError,
    EngineFailure,
    NotFound,
    Offline,
    OutOfMemory,
    PromptTooLong,
    UsageError,
)
from .options import (
    AnswerOptions,
    DecideOptions,
    FillOptions,
    GenerateOptions,
    LoadingOptions,
    ScoreOptions,
    StreamOptions,
)
from .types import (
    CanvasReport,
    Committed,
    Draft,
    Event,
    Failed,
    Filled,
    Finished,
    Message,
    Messages,
    Params,
    Ranked,
    Reply,
    Settled,
    Timings,
    TokenLogprob,
    TokenRead,
    ToolCall,
    Usage,
)
from .version import __version__

if TYPE_CHECKING:
    from .server.app import create_app
    from .session import Session, load
    from .text.scores import Scored, TokenScore

# Public names whose modules take time to import, most of them torch: name -> module that has it.
_LAZY = {
    "Scored": "canvaslm.text.scores",
    "Session": "canvaslm.session",
    "TokenScore": "canvaslm.text.scores",
    "create_app": "canvaslm.server.app",
    "load": "canvaslm.session",
}

__all__ = [
    "AnswerOptions",
    "BadConfig",
    "BadModelFile",
    "BadTemplate",
    "CanvasError",
    "CanvasReport",
    "Committed",
    "DecideOptions",
    "Decision",
    "Decisions",
    "Draft",
    "EngineFailure",
    "Event",
    "Failed",
    "FillOptions",
    "Filled",
    "Finished",
    "GenerateOptions",
    "LoadingOptions",
    "Message",
    "Messages",
    "NotFound",
    "Offline",
    "OutOfMemory",
    "Params",
    "PromptTooLong",
    "Question",
    "Ranked",
    "Reply",
    "ScoreOptions",
    "Scored",
    "Session",
    "Settled",
    "StreamOptions",
    "Timings",
    "TokenLogprob",
    "TokenRead",
    "TokenScore",
    "ToolCall",
    "Usage",
    "UsageError",
    "__version__",
    "choice",
    "create_app",
    "load",
    "predicate",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'canvaslm' has no attribute {name!r}")
