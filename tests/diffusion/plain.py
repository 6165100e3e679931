"""The rules of one step for one row, written out plainly: the twin of what runs over all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from canvaslm.ops import noise
from canvaslm.ops.predict import Prediction
from canvaslm.types import Params


@dataclass
class PlainCanvas:
    """One row's canvas; tensors [C], and a history instead of counters."""

    seed: int
    index: int
    tokens: Tensor
    argmax: Tensor
    frozen: Tensor
    step: int = 0
    settled: int = 0
    stop: str | None = None
    history: list[Tensor] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    accepted: Tensor | None = None
    entropy: Tensor | None = None

    @classmethod
    def start(cls, seed: int, index: int, places: int, vocab: int, given: dict[int, int]) -> PlainCanvas:
        tokens = noise.tokens(noise.stream(seed, index, 0, noise.START), places, vocab)
        frozen = torch.zeros(places, dtype=torch.bool)
        for place, token in given.items():
            tokens[place], frozen[place] = token, True
        return cls(seed, index, tokens, tokens, frozen, held=[0] * places)

    def advance(
        self, prediction: Prediction, params: Params, vocab: int, eos_token_ids: Sequence[int]
    ) -> None:
        """prediction: tensors [C]."""
        frozen = self.frozen
        argmax = torch.where(frozen, self.tokens, prediction.argmax)
        sampled = torch.where(frozen, self.tokens, prediction.sampled)
        entropy = torch.where(frozen, torch.tensor(0.0), prediction.entropy)
        logprob = torch.where(frozen, torch.tensor(0.0), prediction.logprob)
        accepted = _accept(self, entropy, logprob, params) | frozen
        key = noise.stream(self.seed, self.index, self.step, noise.RENOISE)
        fresh = noise.tokens(key, len(sampled), vocab)
        kept = argmax if params.temperature == 0 else sampled
        self.held = [
            (held + 1 if now == before else 1) if float(e) < float(torch.tensor(params.settle_entropy)) else 0
            for held, now, before, e in zip(self.held, argmax, self.argmax, entropy, strict=True)
        ]
        self.tokens, self.step = torch.where(accepted, kept, fresh), self.step + 1
        self.stop = self._decide(argmax, entropy, params, eos_token_ids)
        self.history.append(argmax)
        self.argmax, self.accepted, self.entropy = argmax, accepted, entropy
        if params.settle_steps and self.stop is None:
            self._settle(params.settle_steps)

    def _decide(
        self, argmax: Tensor, entropy: Tensor, params: Params, eos_token_ids: Sequence[int]
    ) -> str | None:
        wanted, places = params.stability_threshold, len(argmax)
        mean = float(entropy.mean())
        ends = [i for i, token in enumerate(argmax.tolist()) if token in eos_token_ids]
        if params.eos_aware_stopping and ends:
            places = ends[0] + 1
            mean = sum(entropy[:places].tolist()) / places
        recent = self.history[len(self.history) - wanted :] if wanted else []
        stable = len(recent) == wanted and all(torch.equal(argmax[:places], h[:places]) for h in recent)
        if stable and mean < params.confidence_threshold:
            return "converged"
        return "max_steps" if self.step >= params.max_denoising_steps else None

    def _settle(self, steps: int) -> None:
        certain = next((i for i, held in enumerate(self.held) if held < steps), len(self.held))
        self.settled = max(self.settled, certain)
        self.tokens = torch.cat((self.argmax[: self.settled], self.tokens[self.settled :]))
        self.frozen = self.frozen.clone()
        self.frozen[: self.settled] = True


def _accept(canvas: PlainCanvas, entropy: Tensor, logprob: Tensor, params: Params) -> Tensor:
    if params.sampler == "entropy_bound":
        ordered, order = entropy.sort(stable=True, dim=0)
        return torch.zeros_like(canvas.frozen).scatter(
            0, order, ordered.cumsum(0) - ordered <= params.entropy_bound
        )
    if params.sampler == "ancestral":
        left = params.max_denoising_steps - canvas.step - 1
        key = noise.stream(canvas.seed, canvas.index, canvas.step, noise.ANCESTRAL)
        return noise.uniforms(key, len(entropy)) >= left / params.max_denoising_steps
    accepted = logprob.exp() >= params.accept_threshold
    accepted[logprob.argmax()] = True
    return accepted


__all__ = ["PlainCanvas"]
