"""Every exception canvaslm raises on purpose.

    CanvasError
    ├── UsageError          a parameter or a combination of flags that cannot work          exit 2, HTTP 400
    │   └── PromptTooLong   the prompt does not fit the context                              exit 2, HTTP 400
    ├── WriteFailed         a file that cannot be written: the disk is full, no permission   exit 1
    ├── NotFound            a model, file or repository that is not there                    exit 3, HTTP 404
    ├── OutOfMemory         the model or the request does not fit in memory                  exit 4
    ├── Offline             a download is needed and the network is off or unreachable       exit 5
    ├── BadModelFile        a file that is broken, hostile or of an unsupported kind         exit 6
    │   ├── BadConfig       config.json: unknown or contradictory field                      exit 6
    │   └── BadTemplate     a chat template that is broken, too slow or too large            exit 6, HTTP 400
    └── EngineFailure       the engine failed while serving a request                        exit 1, HTTP 500

The message of each names the input at fault and the remedy. `exit_code` is what the command line returns.
"""

from __future__ import annotations


class CanvasError(Exception):
    """Base of all canvaslm errors."""

    exit_code = 1


class UsageError(CanvasError):
    """A parameter or a combination of flags that cannot work.

    `param` names the parameter at fault, in the spelling of `Params`, when there is one.
    """

    exit_code = 2

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(UsageError):
    """The prompt (plus one canvas) does not fit the context."""


class WriteFailed(CanvasError):
    """A file that cannot be written: the disk is full, or may not be written to. Nothing is left of it."""


class NotFound(CanvasError):
    """A model, a file or a repository that is not there."""

    exit_code = 3


class OutOfMemory(CanvasError):
    """The model or the request does not fit in memory; the message holds both numbers."""

    exit_code = 4


class Offline(CanvasError):
    """A download is needed, but the network is off (`HF_HUB_OFFLINE`) or unreachable."""

    exit_code = 5


class BadModelFile(CanvasError):
    """A model file that is broken, hostile or of an unsupported kind."""

    exit_code = 6


class BadConfig(BadModelFile):
    """A `config.json` field that is unknown, missing or contradicts another; the message names it."""


class BadTemplate(BadModelFile):
    """A chat template that is broken, too slow or too large."""


class EngineFailure(CanvasError):
    """The engine failed while it served a request."""


__all__ = [
    "BadConfig",
    "BadModelFile",
    "BadTemplate",
    "CanvasError",
    "EngineFailure",
    "NotFound",
    "Offline",
    "OutOfMemory",
    "PromptTooLong",
    "UsageError",
    "WriteFailed",
]
