"""DiffusionGemma: one stack of layers that encodes a context and denoises canvases against it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.linear import Linear
from ...ops.norm import RMSNorm
from ...ops.rotary import rotary_frequencies, rotary_table
from ..adapting import Switch
from ..context import Context
from ..protocol import Model, RouterLog
from .adapting import adapt, adaptable_shapes
from .config import DiffusionGemmaConfig
from .fused import fuse
from .text import SelfConditioning, TextLayer

Rope = tuple[Tensor, Tensor]


class DiffusionGemma(Model):
    """The model in plain torch. Parameters are named as in the checkpoints, less the prefix `model.decoder.`.

    B rows, L tokens, C canvas places, H hidden size, V vocabulary. Positions are int64; -1 marks padding.
    """

    def __init__(
        self,
        config: DiffusionGemmaConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(TextLayer(config, i, **factory) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.self_conditioning: nn.Module = SelfConditioning(config, **factory)
        self.lm_head = (
            None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, **factory)
        )
        # Plain attributes, not buffers: `.to(dtype)` must never round a frequency.
        self._sliding_frequencies = rotary_frequencies(config.head_dim, config.rope_theta)
        self._full_frequencies = rotary_frequencies(
            config.global_head_dim, config.global_rope_theta, config.partial_rotary_factor
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> embeddings [B, L, H], times sqrt(H)."""
        return self.embed_tokens(tokens) * self.embedding_scale.to(tokens.device)

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

        With `hidden`, also returns the final-normed states [B, L, H], which only training reads: without it
        the last layer stops at its keys and values.
        """
        length = tokens.shape[1]
        if not hidden:
            self.forward(tokens, positions, context, length, router_log=router_log)
            return None
        x = self.embed(tokens)
        for layer, rope in zip(self.layers, self._ropes(positions), strict=True):
            x = layer(x, positions, rope, context, encoded=length, router_log=router_log)
        return self.norm(x)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        context: Context,
        encoded: int,
        soft: Tensor | None = None,
        *,
        states: bool = False,
        router_log: RouterLog | None = None,
    ) -> Tensor:
        """See `Model.forward`."""
        x, (*ropes, rope) = self._enter(tokens, encoded, soft), self._ropes(positions)
        *layers, last = self.layers
        for layer, its_rope in zip(layers, ropes, strict=True):
            x = layer(x, positions, its_rope, context, encoded=encoded, router_log=router_log)
        # What is encoded owes the last layer its keys and values, and no more, unless its states are read.
        if encoded and not states:
            old, new = slice(encoded), slice(encoded, None)
            with self._part(0, encoded):
                last.append_keys_values(x[:, old], positions[:, old], _cut(rope, old), context)
            x, positions, rope = x[:, new], positions[:, new], _cut(rope, new)
        if x.shape[1] == 0:
            return x
        its_encoded = encoded if states else 0
        with self._part(encoded - its_encoded, tokens.shape[1]):
            return self.norm(last(x, positions, rope, context, encoded=its_encoded, router_log=router_log))

    def fuse(self) -> None:
        """See `Model.fuse`."""
        fuse(self)

    def adapt(self) -> Switch:
        """See `Model.adapt`."""
        if self.switch is None:
            self.switch = adapt(self)
        return self.switch

    def adaptable(self) -> dict[str, tuple[int, ...]]:
        """See `Model.adaptable`."""
        assert isinstance(self.config, DiffusionGemmaConfig)
        return adaptable_shapes(self.config)

    def _part(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Inside, only these tokens of the pass go through adapted modules."""
        return nullcontext() if self.switch is None else self.switch.part(start, stop)

    def _enter(self, tokens: Tensor, encoded: int, soft: Tensor | None) -> Tensor:
        """Embeddings [B, L, H]; those of canvases mixed with the last step's prediction."""
        x = self.embed(tokens)
        if encoded == tokens.shape[1]:
            return x
        with self._part(encoded, tokens.shape[1]):
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
