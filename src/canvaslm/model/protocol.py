"""What engine, cache, runner, training and bench need of any block-diffusion model.

A family subclasses `Model` and writes `forward`; all else here is the same for every family. How it denoises
and commits is data: `model.config.facts`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from ..ops.linear import Linear
from ..ops.predict import Table
from .adapting import Switch
from .config import ModelConfig
from .context import Context

# Probabilities [T, E] and choices [T, K] of each layer's router.
RouterLog = list[tuple[Tensor, Tensor]]


class Model(nn.Module):
    """A model that encodes a context and denoises canvases against it.

    B rows, L tokens, C canvas places, H hidden size, V vocabulary. Positions are int64; -1 marks padding. A
    subclass sets the attributes below and names its parameters as its table of names (`model.names`) says.
    """

    config: ModelConfig
    layers: nn.ModuleList
    norm: nn.Module  # of the last states; its weight has the type and device of activations
    embed_tokens: nn.Module  # an nn.Embedding, or a quantised table
    lm_head: nn.Module | None  # None: the embedding is the head
    self_conditioning: nn.Module | None  # None where the family has none

    @abstractmethod
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
        """One pass over rows [B, L] whose first `encoded` tokens are encoded and whose
        others, canvases, are denoised.

        The same as `encode` followed by `denoise`: in each layer a token's keys and values come from its own
        state alone, and the context has stored them before a canvas behind them asks. `soft` [B, L - encoded,
        H] is the soft embedding of the previous step's prediction; None on the first step, and in families
        without self-conditioning. Returns the canvases' final-normed states [B, L - encoded, H]; with
        `states` those of all tokens [B, L, H], for whose encoded part the last layer is more work.
        """

    # How keys and values are stored for the attention of these layers: a name of `cache.stores`.
    store: str = "tensors"
    # Fewest tokens of a pass of its own that give each the same bits as many do. Below 16 rows the matrix
    # library of plain torch picks other kernels (and attention below 4 queries), whose sums differ.
    fewest: int = 16

    # Tells adapted modules which tokens go through which adapter; None: the model is not adapted.
    switch: Switch | None = None

    def adapt(self) -> Switch:
        """Makes the model heed adapters (`model.adapting`), once; returns what says which are in use.

        Without any in use it gives the bits that it gave before. Raises UsageError for families that cannot.
        """
        raise UsageError(f"{type(self).__name__} models cannot take adapters yet", param="adapter")

    def adaptable(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes [out, in] or [E, out, in] of the matrices that an adapter may change."""
        return {}

    def fuse(self) -> None:
        """Once the weights are there: puts faster twins in the place of layers whose weights
        all lie as those want them.

        A twin whose attention reads keys and values of a kind of its own says so in `store`. By
        default nothing is done.
        """

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self._last_weight().dtype

    @property
    def device(self) -> torch.device:
        return self._last_weight().device

    def _last_weight(self) -> Tensor:
        weight = self.norm.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def embedding(self) -> Table:
        """The embedding [V, H]: a tensor, or a quantised table (`ops.quantised.QuantVocabulary`)."""
        table: Any = self.embed_tokens
        return table.weight if isinstance(table, nn.Embedding) else table

    @property
    def head(self) -> Table:
        """The output matrix [V, H]; the embedding itself when they are tied."""
        table: Any = self.lm_head
        if table is None:
            return self.embedding
        return table.weight if isinstance(table, Linear) else table

    @property
    def embedding_scale(self) -> Tensor:
        """sqrt(H), rounded to the embedding's dtype: what a soft embedding is multiplied by."""
        return torch.tensor(self.config.hidden_size**0.5, dtype=self.dtype)

    def soft_embedding(self, probabilities: Tensor) -> Tensor:
        """Expected embedding [..., H] under probabilities [..., V], times sqrt(H).
        Unquantised models only."""
        table = self.embedding
        assert isinstance(table, Tensor)
        return (probabilities.to(table.dtype) @ table) * self.embedding_scale.to(table.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] in fp32. For training and small vocabularies, unquantised; see `ops.predict`."""
        cap, head = self.config.softcap, self.head
        if not isinstance(head, Tensor):
            raise TypeError(
                "a quantised head gives predictions (ops.predict), not logits; load it with a dtype for these"
            )
        raw = F.linear(hidden, head).float()
        return torch.tanh(raw / cap) * cap if cap else raw

    def encode(
        self,
        tokens: Tensor,
        positions: Tensor,
        context: Context,
        *,
        hidden: bool = False,
        router_log: RouterLog | None = None,
    ) -> Tensor | None:
        """Writes the keys and values of tokens [B, L] into the context.

        With `hidden`, also returns the final-normed states [B, L, H], which only training reads; a family
        that can be trained overrides this method.
        """
        if hidden:
            raise NotImplementedError(f"{type(self).__name__} gives no states of encoded tokens")
        self.forward(tokens, positions, context, tokens.shape[1], router_log=router_log)
        return None

    def denoise(
        self,
        canvas: Tensor,
        positions: Tensor,
        context: Context,
        soft: Tensor | None = None,
        *,
        router_log: RouterLog | None = None,
    ) -> Tensor:
        """One pass over canvases [B, C]: returns final-normed states [B, C, H].

        `soft` [B, C, H] is the soft embedding of the previous step's prediction; None
        (or zeros) on the first.
        """
        return self.forward(canvas, positions, context, 0, soft, router_log=router_log)


__all__ = ["Model", "RouterLog"]
