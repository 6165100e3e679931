"""Text in, text out: joins a tokenizer, a chat template and an engine."""

from .loading import Progress, load
from .session import Session

__all__ = ["Progress", "Session", "load"]
