"""The attention layer: stores this batch's keys and values in their slots, then reads everything from the pool.

Legend: T tokens, H query heads and K key/value heads of this rank, D head_dim.
"""

from torch import Tensor, nn

from actorllm.layers.batch import Batch
from actorllm_kernels.attention import attend, row_keys
from actorllm_kernels.store_kv import store_kv


class Attention(nn.Module):
    """Softmax attention over token slots for model layer `layer` in cache group `group`.

    The group has buffers "k" and "v" of [K, D] values a token. `window` W limits a query to the last W keys, its own
    included. Has no weights.
    """

    def __init__(self, layer: int, *, group: int, scale: float, window: int | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.group = group
        self.scale = scale
        self.window = window

    def forward(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Batch) -> Tensor:
        """[T, H, D]."""
        k_pool = batch.cache.buffer(self.group, self.layer, "k")
        v_pool = batch.cache.buffer(self.group, self.layer, "v")
        slots_T = batch.write_slots_T[self.group]
        store_kv(k_TKD, slots_T, k_pool)
        store_kv(v_TKD, slots_T, v_pool)
        if self.group not in batch.keys:
            spans = [(span.row, span.query_len, span.seq_len) for span in batch.spans]
            batch.keys[self.group] = row_keys(spans, batch.slot_tables[self.group], window=self.window)
        return attend(q_THD, k_pool, v_pool, batch.keys[self.group], scale=self.scale)
