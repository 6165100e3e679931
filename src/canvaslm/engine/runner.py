"""Turns sequences into tensors, runs the model, and turns what comes back into predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cache import DenoiseContext, EncodeContext, KVCache
from ..diffusion import temperature
from ..model import DiffusionGemma
from ..model.packed import PackedTextLayer
from ..ops.predict import Prediction, draw, predict
from .sequence import Sequence

# Tokens encoded at once. A chunk shorter than the smallest is padded: below 16 rows the matrix library picks other
# kernels, whose sums differ in the last bit.
ENCODE_CHUNK = 512
SMALLEST_CHUNK = 16


class Runner:
    """The only part of the engine that calls the model. Not thread-safe; keeps no request state."""

    def __init__(
        self,
        model: DiffusionGemma,
        *,
        deterministic: bool = False,
        kv_type: torch.dtype | None = None,
        exact: bool = False,
    ) -> None:
        """`deterministic` denoises one row at a time: for backends whose products depend on the batch's shape.

        On a CPU in fp32 they do not (tests hold that down), so that batching changes no bit. `kv_type` is what keys and
        values are kept in; None: the activations' type, or bfloat16 where the native kernels read them. `exact` lets
        those kernels leave nothing out of the soft embedding.
        """
        self.model = model.eval().requires_grad_(False)
        self.deterministic, self.exact = deterministic, exact
        self.device, self.dtype = model.device, model.dtype
        self.native = any(isinstance(layer, PackedTextLayer) for layer in model.layers)
        self.kv_type = kv_type or (torch.bfloat16 if self.native else self.dtype)

    def new_cache(self, expected: int = 0) -> KVCache:
        return KVCache(self.model.config, self.device, self.kv_type, expected, native=self.native)

    @torch.inference_mode()
    def encode(self, sequence: Sequence) -> None:
        """Encodes the next chunk of a sequence's pending tokens into its cache."""
        assert sequence.cache is not None
        chunk = sequence.pending[:ENCODE_CHUNK]
        padded = chunk + [self.model.config.pad_token_id] * (SMALLEST_CHUNK - len(chunk))
        tokens = torch.tensor([padded], device=self.device)
        positions = sequence.cache.length + torch.arange(len(padded), device=self.device)[None]
        # Padding comes last: what is causal never sees it, and it is not counted in.
        self.model.encode(tokens, positions, EncodeContext(sequence.cache))
        sequence.cache.advance(len(chunk))
        sequence.encoded += chunk
        del sequence.pending[: len(chunk)]

    def denoise(self, sequences: list[Sequence]) -> list[Prediction]:
        """One denoise pass over the canvases of all sequences, each at its own step."""
        if self.deterministic:
            return [self._denoise([sequence])[0] for sequence in sequences]
        return self._denoise(sequences)

    @torch.inference_mode()
    def _denoise(self, sequences: list[Sequence]) -> list[Prediction]:
        canvases, caches = [], []
        for sequence in sequences:
            assert sequence.canvas is not None and sequence.cache is not None
            canvases.append(sequence.canvas)
            caches.append(sequence.cache)
        tokens = torch.stack([canvas.tokens for canvas in canvases])
        places = torch.arange(tokens.shape[1], device=self.device)
        positions = torch.stack([cache.length + places for cache in caches])
        soft = self._soft([canvas.soft for canvas in canvases], tokens)
        hidden = self.model.denoise(tokens, positions, DenoiseContext(caches), soft)
        vocab = self.model.config.vocab_size
        prediction = predict(
            hidden,
            self.model.head,
            self.model.embedding,
            softcap=self.model.config.softcap,
            temperature=[temperature(s.params, c.step) for s, c in zip(sequences, canvases, strict=True)],
            draws=[draw(c.seed, c.index, c.step, tokens.shape[1], vocab, self.device) for c in canvases],
            exact=self.exact,
            top=max(s.request.top_logprobs or 0 for s in sequences),
            soft=any(
                c.step + 1 < s.params.max_denoising_steps for s, c in zip(sequences, canvases, strict=True)
            ),
        )
        return [prediction.row(i) for i in range(len(sequences))]

    def _soft(self, softs: list[Tensor | None], tokens: Tensor) -> Tensor | None:
        """Soft embeddings [B, C, H]; a first step's is zero, and when all are at their first step, None."""
        if all(soft is None for soft in softs):
            return None
        zero = torch.zeros(
            tokens.shape[1], self.model.config.hidden_size, device=self.device, dtype=self.dtype
        )
        return torch.stack([zero if soft is None else soft for soft in softs])


__all__ = ["ENCODE_CHUNK", "Runner"]
