"""What becomes of what the causal reader has said: of a canvas, of a prompt, of the next token."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..diffusion import RowParams
from ..model import Model
from ..ops import noise
from ..ops.token_logprobs import token_logprobs
from ..types import Projection, TokenRead
from .asking import HeadAnswers, HeadQuery, ask
from .guards import Standing, keep
from .reader import CHECKED_AGAIN, Heard, choice, first_refused, own_token
from .sequence import Sequence

# Tokens named of a place at first for a top-p; more where they have not the mass.
_NUCLEUS = 64


@dataclass(frozen=True)
class Verdict:
    """Of a canvas: `accepted` of its tokens are context now. `again`: {place: token} to begin it with once
    more, or, if empty, what is committed of it and what of that is still to be encoded."""

    accepted: int
    committed: Projection
    kept: Standing
    pending: list[int] = field(default_factory=list)
    reads: tuple[TokenRead, ...] = ()
    before: Tensor | None = None
    again: dict[int, int] = field(default_factory=dict)


def verdict(sequence: Sequence, committed: Projection, kept: Standing) -> Verdict:
    """Of the canvas that the last pass has read, of which `kept` would stand."""
    said, heard = _heard(sequence)
    at = first_refused(sequence.params, kept.tokens, said, _fixed(sequence, committed, kept))
    reader = sequence.reader
    assert reader is not None
    if at is None or reader.reads > sequence.places:  # that often no place is left to be refused
        return Verdict(len(kept.tokens), committed, kept, reads=tuple(heard.reads()), before=heard.states[-1])
    _hurry(sequence)
    made = [*kept.tokens[:at], own_token(sequence.params, said, at)]
    if not _commits_parts(sequence):
        again = dict(enumerate(made, sequence.first_place))
        return Verdict(0, committed, kept, again=again)
    stands = keep(sequence, made)
    accepted = min(at, len(stands.tokens))
    reads = heard.reads()[: len(stands.tokens)]
    if len(reads) > at and stands.tokens[at] == said.best[at]:
        reads[at] = TokenRead(said.best_logprob[at], 1, reads[at].entropy)
    return Verdict(
        accepted,
        Projection(tuple(made), (*committed.places[:at], None), committed.state),
        stands,
        stands.tokens[accepted:],
        tuple(reads),
        heard.states[accepted - 1] if accepted else reader.before,
    )


def _heard(sequence: Sequence) -> tuple[HeadAnswers, Heard]:
    reader = sequence.reader
    assert reader is not None and reader.heard is not None and reader.heard.choice is not None
    return reader.heard.choice, reader.heard


def _fixed(sequence: Sequence, committed: Projection, kept: Standing) -> list[bool]:
    """Of each token: given, or put in by a constraint or a budget."""
    assert sequence.canvas is not None
    frozen: list[bool] = sequence.canvas.frozen[0].tolist()
    places = kept.places(committed.places)
    return [places[i] is None or frozen[places[i] or 0] for i in range(len(kept.tokens))]


def _commits_parts(sequence: Sequence) -> bool:
    """Whether a canvas may be committed in part: not where places of the answer mean something, nor where a
    constraint's state is known at ends of canvases alone."""
    request = sequence.request
    return not (request.constraint or request.given or request.allowed or request.draft or request.watched)


def _hurry(sequence: Sequence) -> None:
    """What is once refused is better written in short steps (`reader`)."""
    if sequence.params.verify == "checked" and not sequence.request.params.verify_steps:
        sequence.params = replace(sequence.params, verify_steps=CHECKED_AGAIN)
        assert sequence.canvas is not None
        device = sequence.canvas.tokens.device
        sequence.row_params = RowParams.of(sequence.params, sequence.request.eos_token_ids, device)


def heard_prompt(sequence: Sequence) -> None:
    """Notes what has been said of the part of the prompt that the last pass has read."""
    reader, request = sequence.reader, sequence.request
    assert reader is not None and reader.heard is not None
    if request.prompt_logprobs is None:
        return
    if not reader.prompt and not request.prompt_first:
        reader.prompt.append(None)  # nothing comes before the very first token
    reader.prompt += reader.heard.reads()


def own_next(model: Model, sequence: Sequence, *, again: bool = False) -> tuple[Standing, float]:
    """What stands of the reader's own next token, and the entropy of its place in nats. again: its rules have
    changed since it was asked."""
    reader = sequence.reader
    assert reader is not None and reader.heard is not None
    states, said = reader.heard.states[-1:], reader.heard.choice
    if again or said is None:
        (said,) = ask(model, [choice(sequence, states, ())])
    token = own_token(sequence.params, said, 0)
    if sequence.params.top_p < 1 and sequence.params.temperature > 0:
        token = _nucleus(model, sequence, states)
    return keep(sequence, [token]), said.entropy[0]


def _nucleus(model: Model, sequence: Sequence, states: Tensor) -> int:
    """A token of the likeliest ones that together have `top_p` of the mass (Holtzman et al. 2020)."""
    question, count, size = choice(sequence, states, ()), _NUCLEUS, model.config.vocab_size
    while True:
        (said,) = ask(model, [replace(question, top=min(count, size), top_k=0)])
        # With a top-k as well, of its tokens.
        (named,) = said.top
        named = named[: question.top_k or len(named)]
        masses = torch.tensor([value for _, value in named], dtype=torch.float64).exp()
        if float(masses.sum()) >= sequence.params.top_p or count >= size or question.top_k:
            break
        count *= 16
    sums = masses.cumsum(0)
    inside = int((sums < sequence.params.top_p * min(1.0, float(sums[-1]))).sum()) + 1
    key = noise.stream(sequence.seed, len(sequence.output), 0, noise.NUCLEUS)
    target = float(noise.uniforms(key, 1)) * float(sums[min(inside, len(named)) - 1])
    return named[min(int((sums <= target).sum()), len(named) - 1)][0]


def reads_of(model: Model, sequence: Sequence, tokens: list[int]) -> tuple[TokenRead, ...] | None:
    """What the reader says of the token that it has just chosen, if anybody asks; the rest of `tokens` comes
    from elsewhere."""
    request, reader = sequence.request, sequence.reader
    assert reader is not None and reader.heard is not None
    if not tokens or not (request.reads or request.top_logprobs is not None):
        return None
    (said,) = ask(model, [HeadQuery(reader.heard.states[-1:], (tokens[0],), top=request.top_logprobs or 0)])
    return tuple(replace(reader.heard, report=said).reads())


def watched_next(model: Model, sequence: Sequence) -> Tensor | None:
    """Log-probabilities [1, W] of the tokens that are watched at the answer's next place, if any are."""
    tokens = sequence.request.watched.get(len(sequence.output))
    reader = sequence.reader
    if tokens is None or reader is None or reader.heard is None:
        return None
    states = reader.heard.states[-1:]
    return token_logprobs(
        states, model.head, torch.tensor([tokens], device=states.device), softcap=model.config.softcap,
        forbidden=model.config.facts.mask_token_id,
    )  # fmt: skip


__all__ = ["Verdict", "heard_prompt", "own_next", "reads_of", "verdict", "watched_next"]
