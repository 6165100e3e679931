"""Strings and tokens: tokenizer, chat templates, and the parser of replies. Never imports torch."""

from __future__ import annotations

from canvaslm.text.chat import ChatTemplate
from canvaslm.text.decoding import StreamDecoder
from canvaslm.text.markers import Special
from canvaslm.text.parse import Delta, ReplyParser
from canvaslm.text.stop import StopStrings
from canvaslm.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Delta", "ReplyParser", "Special", "StopStrings", "StreamDecoder", "Tokenizer"]
