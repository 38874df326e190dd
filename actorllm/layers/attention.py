"""The attention layer: rotates, stores this batch's keys and values in their slots, then reads everything from the pool.

Legend: T tokens, H query heads and K key/value heads of this rank, D head_dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from actorllm.layers.batch import Batch
from actorllm.layers.linear import HeadSplit
from actorllm.weights.source import WeightSource
from actorllm_kernels.attention import RaggedKeys, attend
from actorllm_kernels.rotary_store import Angles, rotate_and_store


class Attention(nn.Module):
    """Softmax attention over token slots for model layer `layer` in cache group `group`.

    The group has buffers "k" and "v" of [K, D] values a token, in a quantized cache with a scale for each head. Scores are
    `scale * q.k`. `window` W limits a query to the last W keys, its own included; `soft_cap` limits scores to that size by a tanh; `slopes`, one for each of this
    rank's H heads, are ALiBi's (`alibi_slopes`). Has no weights.
    """

    def __init__(
        self,
        layer: int,
        *,
        group: int,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
        slopes: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.group = group
        self.scale = scale
        self.window = window
        self.soft_cap = soft_cap
        self.slopes = slopes
        self._slopes_H: Tensor | None = None

    def forward(
        self,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        batch: Batch,
        *,
        angles: Angles | None = None,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """[T, H, D]. `angles` rotate queries and keys first (`Rotary`); `sinks_H` are the heads' sinks, see `Sinks`."""
        cache, slots_T = batch.cache, batch.write_slots_T[self.group]
        k_pool, v_pool = cache.buffer(self.group, self.layer, "k"), cache.buffer(self.group, self.layer, "v")
        k_scales, v_scales = cache.scales(self.group, self.layer, "k"), cache.scales(self.group, self.layer, "v")
        scales = None if k_scales is None or v_scales is None else (k_scales, v_scales)
        q_THD = rotate_and_store(q_THD, k_TKD, v_TKD, angles, slots_T, (k_pool, v_pool), scales)
        if self.group not in batch.keys:
            batch.keys[self.group] = RaggedKeys(batch.spans, batch.slot_tables[self.group], self.window, batch.spans_B4)
        return attend(
            q_THD,
            k_pool,
            v_pool,
            batch.keys[self.group],
            scale=self.scale,
            soft_cap=self.soft_cap,
            sinks_H=sinks_H,
            slopes_H=self._device_slopes(q_THD.device),
            k_scales_NK=k_scales,
            v_scales_NK=v_scales,
        )

    def _device_slopes(self, device: torch.device) -> Tensor | None:
        """The slopes on the device; they go there once, because a copy in every step would wait for the host."""
        if self.slopes is not None and (self._slopes_H is None or self._slopes_H.device != device):
            self._slopes_H = torch.tensor(self.slopes, dtype=torch.float32, device=device)
        return self._slopes_H


class Sinks(nn.Module):
    """A learned score for each head that takes part in the softmax and adds no value (arXiv 2508.10925).

    Is the checkpoint's tensor of this module's own name; a rank pulls its heads' part.
    """

    def __init__(self, split: HeadSplit) -> None:
        super().__init__()
        self.split = split
        self.weight_H: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        self.weight_H = source.tensor(prefix.removesuffix("."), (self.split.num_heads,), rows=self.split.q_heads)

    def unload(self) -> None:
        self.weight_H = None

    def forward(self) -> Tensor:
        """[H] for `Attention`."""
        assert self.weight_H is not None, "the layer has no weights yet"
        return self.weight_H


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi's slope of each head: the geometric series from `2^(-8/n)` to `2^-8` for a power of two n (arXiv 2108.12409).

    Other counts take the series of the power of two below, then every second slope of the series of twice as many, as
    the authors' code does. A rank takes its part: `alibi_slopes(n)[slice(*split.q_heads)]`.
    """
    below = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (head + 1) / below) for head in range(below)]
    return slopes + [2.0 ** (-4 * (2 * head + 1) / below) for head in range(num_heads - below)]
