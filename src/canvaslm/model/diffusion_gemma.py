"""DiffusionGemma: one stack of layers that encodes a context and denoises canvases against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.linear import Linear
from ..ops.norm import RMSNorm
from ..ops.predict import Table
from ..ops.rotary import rotary_frequencies, rotary_table
from .config import ModelConfig
from .context import Context
from .text import RouterLog, SelfConditioning, TextLayer

Rope = tuple[Tensor, Tensor]


class DiffusionGemma(nn.Module):
    """The model in plain torch. Parameters are named as in the checkpoints, less the prefix `model.decoder.`.

    B rows, L tokens, C canvas places, H hidden size, V vocabulary. Positions are int64; -1 marks padding.
    """

    def __init__(
        self, config: ModelConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(TextLayer(config, i, **factory) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.self_conditioning = SelfConditioning(config, **factory)
        self.lm_head = (
            None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, **factory)
        )
        # Plain attributes, not buffers: `.to(dtype)` must never round a frequency.
        self._sliding_frequencies = rotary_frequencies(config.head_dim, config.rope_theta)
        self._full_frequencies = rotary_frequencies(
            config.global_head_dim, config.global_rope_theta, config.partial_rotary_factor
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def embedding(self) -> Table:
        """The embedding [V, H]: a tensor, or a quantised table (`ops.quantised.QuantVocabulary`)."""
        return self.embed_tokens.weight if isinstance(self.embed_tokens, nn.Embedding) else self.embed_tokens

    @property
    def head(self) -> Table:
        """The output matrix [V, H]; the embedding itself when they are tied."""
        if self.lm_head is None:
            return self.embedding
        return self.lm_head.weight if isinstance(self.lm_head, Linear) else self.lm_head

    @property
    def embedding_scale(self) -> Tensor:
        """sqrt(H), rounded to the embedding's dtype: that rounding is part of the model."""
        return torch.tensor(self.config.hidden_size**0.5, dtype=self.dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> embeddings [B, L, H], times sqrt(H)."""
        return self.embed_tokens(tokens) * self.embedding_scale.to(tokens.device)

    def soft_embedding(self, probabilities: Tensor) -> Tensor:
        """Expected embedding [..., H] under probabilities [..., V], times sqrt(H). Unquantised models only."""
        weight = self.embed_tokens.weight
        return (probabilities.to(weight.dtype) @ weight) * self.embedding_scale.to(weight.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Soft-capped logits [..., V] in fp32. For training and small vocabularies, unquantised; see `ops.predict`."""
        cap, head = self.config.softcap, self.head
        if not isinstance(head, Tensor):
            raise TypeError(
                "a quantised head gives predictions (ops.predict), not logits; load it with a dtype for these"
            )
        return torch.tanh(F.linear(hidden, head).float() / cap) * cap

    def encode(
        self,
        tokens: Tensor,
        positions: Tensor,
        context: Context,
        *,
        hidden: bool = False,
        router_log: RouterLog | None = None,
    ) -> Tensor | None:
        """Writes the keys and values of tokens [B, L] into the context, causally.

        With `hidden`, also returns the final-normed states [B, L, H], which only training reads: without it the last
        layer stops at its keys and values.
        """
        x, ropes = self.embed(tokens), self._ropes(positions)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            if i == last and not hidden:
                layer.remember(x, positions, ropes[i], context)
                return None
            x = layer(x, positions, ropes[i], context, encode=True, router_log=router_log)
        return self.norm(x)

    def denoise(
        self,
        canvas: Tensor,
        positions: Tensor,
        context: Context,
        soft: Tensor | None = None,
        *,
        router_log: RouterLog | None = None,
    ) -> Tensor:
        """One bidirectional pass over canvases [B, C]: returns final-normed states [B, C, H].

        `soft` [B, C, H] is the soft embedding of the previous step's prediction; None (or zeros) on the first.
        """
        x, ropes = self.self_conditioning(self.embed(canvas), soft), self._ropes(positions)
        for i, layer in enumerate(self.layers):
            x = layer(x, positions, ropes[i], context, encode=False, router_log=router_log)
        return self.norm(x)

    def _ropes(self, positions: Tensor) -> list[Rope]:
        """Rotary tables of each layer; layers of one kind share theirs."""
        sliding = rotary_table(positions, self._sliding_frequencies, self.dtype)
        full = rotary_table(positions, self._full_frequencies, self.dtype)
        return [sliding if self.config.is_sliding(i) else full for i in range(len(self.layers))]


__all__ = ["DiffusionGemma"]
