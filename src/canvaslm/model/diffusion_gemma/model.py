"""DiffusionGemma: one stack of layers that encodes a context and denoises canvases against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops.linear import Linear
from ...ops.norm import RMSNorm
from ...ops.predict import Table
from ...ops.rotary import rotary_frequencies, rotary_table
from ..config import ModelConfig
from ..context import Context
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
        length = tokens.shape[1]
        if not hidden:
            self.forward(tokens, positions, context, length, router_log=router_log)
            return None
        x = self.embed(tokens)
        for layer, rope in zip(self.layers, self._ropes(positions), strict=True):
            x = layer(x, positions, rope, context, encoded=length, router_log=router_log)
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
        return self.forward(canvas, positions, context, 0, soft, router_log=router_log)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        context: Context,
        encoded: int,
        soft: Tensor | None = None,
        *,
        router_log: RouterLog | None = None,
    ) -> Tensor:
        """One pass over rows [B, L] whose first `encoded` tokens are encoded and whose others, canvases, are denoised.

        The same as `encode` followed by `denoise`: in each layer a token's keys and values come from its own state
        alone, and the context has stored them before a canvas behind them asks. `soft` [B, L - encoded, H] is as in
        `denoise`. Returns the canvases' final-normed states [B, L - encoded, H].
        """
        x, (*ropes, rope) = self._enter(tokens, encoded, soft), self._ropes(positions)
        *layers, last = self.layers
        for layer, its_rope in zip(layers, ropes, strict=True):
            x = layer(x, positions, its_rope, context, encoded=encoded, router_log=router_log)
        # What is encoded owes the last layer its keys and values, and no more.
        if encoded:
            old, new = slice(encoded), slice(encoded, None)
            last.append_keys_values(x[:, old], positions[:, old], _cut(rope, old), context)
            x, positions, rope = x[:, new], positions[:, new], _cut(rope, new)
        if x.shape[1] == 0:
            return x
        return self.norm(last(x, positions, rope, context, encoded=0, router_log=router_log))

    def _enter(self, tokens: Tensor, encoded: int, soft: Tensor | None) -> Tensor:
        """Embeddings [B, L, H]; those of canvases mixed with the last step's prediction."""
        x = self.embed(tokens)
        if encoded == tokens.shape[1]:
            return x
        canvases = self.self_conditioning(x[:, encoded:], soft)
        return torch.cat((x[:, :encoded], canvases), dim=1) if encoded else canvases

    def _ropes(self, positions: Tensor) -> list[Rope]:
        """Rotary tables of each layer; layers that want the same share theirs."""
        wanted = [(self.config.is_sliding(i), bool(x.half_rope)) for i, x in enumerate(self.layers)]
        made = {
            (sliding, half): rotary_table(
                positions,
                self._sliding_frequencies if sliding else self._full_frequencies,
                self.dtype,
                half=half,
            )
            for sliding, half in set(wanted)
        }
        return [made[key] for key in wanted]


def _cut(rope: Rope, part: slice) -> Rope:
    """Rotary tables [B, 1, L, D] of some of the tokens."""
    cos, sin = rope
    return cos[:, :, part], sin[:, :, part]


__all__ = ["DiffusionGemma"]
