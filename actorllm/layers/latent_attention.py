"""Multi-head latent attention: the cache holds one small latent per token, shared by all heads (arXiv 2405.04434).

The projection from latents to heads is never applied to the cache: its key half is folded into the queries, its value half is
applied to what attention gives. Every rank holds all latents and computes its own heads.

Legend: T tokens, H heads of this rank, K size of a head's unrotated key, V of its value, R of the latent, P of the
rotated key that all heads share, C = R + P.
"""

import torch
from torch import Tensor, nn

from actorllm.layers.batch import Batch
from actorllm.layers.linear import HeadSplit
from actorllm.weights.source import WeightSource
from actorllm_kernels.attention import RaggedKeys
from actorllm_kernels.latent_attention import attend_latent, rotate_and_store_latent
from actorllm_kernels.rotary_store import Angles


class LatentAttention(nn.Module):
    """Softmax attention over latents for model layer `layer` in cache group `group`.

    The group has one buffer "latent" of C values a token: the latent, of which there are `latent_size`, then the rotated
    key; in a quantized cache these two `parts` have a scale each. Scores are `scale * q.k`. Has no weights.
    """

    def __init__(self, layer: int, *, group: int, latent_size: int, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.group = group
        self.latent_size = latent_size
        self.scale = scale

    def forward(self, q_THR: Tensor, batch: Batch, *, q_THP: Tensor, latent_TR: Tensor, key_TP: Tensor, angles: Angles) -> Tensor:
        """[T, H, R] mixtures of latents, from queries' folded parts (`LatentHeads.fold`), and from those that `angles` rotate, as they do keys."""
        pool_NC = batch.cache.buffer(self.group, self.layer, "latent")
        scales_N2 = batch.cache.scales(self.group, self.layer, "latent")
        slots_T = batch.write_slots_T[self.group]
        q_THP = rotate_and_store_latent(q_THP, latent_TR, key_TP, angles, slots_T, pool_NC, scales_N2=scales_N2)
        if self.group not in batch.keys:
            batch.keys[self.group] = RaggedKeys(batch.spans, batch.slot_tables[self.group], None, batch.spans_B4)
        keys = batch.keys[self.group]
        q_THC = torch.cat((q_THR, q_THP), dim=-1)
        return attend_latent(q_THC, pool_NC, keys, latent_size=self.latent_size, scale=self.scale, scales_N2=scales_N2)


class LatentHeads(nn.Module):
    """The projection [H (K + V), R] from a latent to every head's key and value, in two halves that are applied elsewhere.

    Is the checkpoint's linear of this module's own name; a rank pulls its heads' rows.
    """

    def __init__(self, split: HeadSplit, *, latent_size: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.split = split
        self.latent_size = latent_size
        self.key_size = key_size
        self.value_size = value_size
        self.key_HKR: Tensor | None = None
        self.value_HRV: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        size = self.key_size + self.value_size
        first, last = self.split.q_heads
        shape = (self.split.num_heads * size, self.latent_size)
        weight = source.linear(prefix.removesuffix("."), shape, rows=(first * size, last * size)).dense()
        key, value = weight.view(last - first, size, self.latent_size).split([self.key_size, self.value_size], dim=1)
        self.key_HKR, self.value_HRV = key.contiguous(), value.transpose(1, 2).contiguous()

    def unload(self) -> None:
        self.key_HKR = self.value_HRV = None

    def fold(self, q_THK: Tensor) -> Tensor:
        """[T, H, R]: queries for latents instead of keys."""
        assert self.key_HKR is not None, "the layer has no weights yet"
        return torch.bmm(q_THK.transpose(0, 1), self.key_HKR).transpose(0, 1)

    def values(self, latent_THR: Tensor) -> Tensor:
        """[T, H, V]: the values that mixtures of latents stand for."""
        assert self.value_HRV is not None, "the layer has no weights yet"
        return torch.bmm(latent_THR.transpose(0, 1), self.value_HRV).transpose(0, 1)
