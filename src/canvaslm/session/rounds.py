"""What a plan to fill a text needs to know, what it asks of an engine, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..constrain.holes import PlacedHoles
from ..constrain.infill import Named
from ..text.tokenizer import Tokenizer
from ..text.transcript import ReplyBuilder
from ..types import DRAFT_NOISE, AdapterUse, Committed, Event, Params, Request
from .seams import Seams
from .template import Template


@dataclass(frozen=True)
class Machine:
    """What of a session a plan needs: facts of its model, and its tokens."""

    tokenizer: Tokenizer
    seams: Seams
    canvas_length: int
    block: int
    vocab_size: int
    end: int  # stands behind a text that is whole
    ends: tuple[int, ...]  # end an answer

    @property
    def places(self) -> int:
        """Of a canvas: where contexts are whole blocks, the end of the prompt that is none takes some."""
        return self.canvas_length - (self.block - 1)

    def ends_in(self, tokens: Sequence[int]) -> int | None:
        """The place of the first token that ends an answer."""
        return next((place for place, token in enumerate(tokens) if token in self.ends), None)


@dataclass(frozen=True)
class FillTask:
    """What is to be filled: the prompt's tokens, the text, how it is sampled (its seed known)."""

    prompt: tuple[int, ...]
    template: Template
    params: Params
    most: int | None = None  # tokens that each hole may have, by the request
    stop: str | Sequence[str] | None = None
    draft_noise: float = DRAFT_NOISE
    drafts: bool = False
    adapters: tuple[AdapterUse, ...] = ()


@dataclass(frozen=True)
class Round:
    """Requests to run together. `layouts`: of each where its holes are; none while lengths are looked for."""

    requests: tuple[Request, ...]
    layouts: tuple[PlacedHoles, ...] = ()


@dataclass
class Outcome(ReplyBuilder):
    """What became of one request."""

    named: list[Named] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Takes the next event. Raises what made the request fail."""
        super().add(event)
        if isinstance(event, Committed):
            self.named += event.top_logprobs


@dataclass
class Begun:
    """What stands of a hole on canvases that were all hole: its tokens, and how many tokens of the text
    before it the first of them has the bytes of."""

    tokens: list[int] = field(default_factory=list)
    before: int = 0
    canvases: int = 0


__all__ = ["Begun", "FillTask", "Machine", "Outcome", "Round"]
