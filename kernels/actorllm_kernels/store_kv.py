"""Write this batch's keys, values (or latents) into their token slots.

Legend: T tokens, N slots.
"""

from torch import Tensor


def store_kv(values_T: Tensor, slots_T: Tensor, pool_N: Tensor) -> None:
    """`pool_N[slots_T[t]] = values_T[t]`: `values_T` is [T, *shape], `pool_N` [N, *shape], `slots_T` int64 [T]."""
    pool_N.index_copy_(0, slots_T, values_T.to(pool_N.dtype))
