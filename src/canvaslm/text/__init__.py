"""Strings and tokens: tokenizer, chat templates, and the parser of replies. Never imports torch."""

from __future__ import annotations

from .chat import ChatTemplate
from .decoding import StreamDecoder
from .markers import Special
from .parse import Delta, ReplyParser
from .stop import StopStrings
from .tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Delta", "ReplyParser", "Special", "StopStrings", "StreamDecoder", "Tokenizer"]
