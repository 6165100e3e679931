"""From messages and options to the engine's request, for one caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diffusion import PARAMETERS
from ..options import StreamOptions
from ..text.token_rules import rules_of
from ..text.tool_choice import forbids_calls
from ..text.toolcalls import tool_names
from ..text.transcript import Transcript
from ..types import Messages, Request
from .options import best_wanted, check_names, given_places, is_on, share_of_noise
from .structures import structure_of

if TYPE_CHECKING:
    from .session import Session


def request_of(session: Session, messages: Messages, options: StreamOptions) -> tuple[Request, Transcript]:
    """The request, and what turns its events into text. Raises UsageError naming the option at fault."""
    check_names(options, StreamOptions.__annotations__)
    params = {name: options.get(name) for name in PARAMETERS}
    best = best_wanted(options.get("logprobs"), is_on(options, "doubt"))
    tools, forbidden = options.get("tools"), forbids_calls(options.get("tool_choice"))
    transcript = Transcript(
        session.tokenizer,
        stop=options.get("stop"),
        logprobs=best is not None,
        tools=frozenset() if forbidden else None if tools is None else tool_names(tools),
    )
    tokens = session.encode(
        messages,
        system=options.get("system"),
        thinking=options.get("thinking", False),
        tools=None if forbidden else tools,
        raw=options.get("raw", False),
    )
    rules = rules_of(options.get("logit_bias"), options.get("allowed_token_ids"))
    request = Request(
        tuple(tokens),
        session.merge(options.get("preset"), params),
        session.eos_token_ids,
        draft=session.draft_places(options.get("draft")),
        draft_noise=share_of_noise(options.get("draft_noise")),
        given=given_places(options.get("given")),
        drafts=options.get("drafts", False),
        top_logprobs=best,
        reads=is_on(options, "doubt"),
        rules=session.without_calls(rules) if forbidden else rules,
        marks=None if options.get("raw") else session.marks,
        adapters=session.adapters.uses(options.get("adapter")),
        constraint=session.constraint_of(structure_of(options), thinking=options.get("thinking", False)),
    )
    return request, transcript


__all__ = ["request_of"]
