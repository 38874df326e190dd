"""The heads that a model's attention reads and stores, and its other sizes: what its kernels are checked for before the first step.

Found in the modules of one rank, which say all but what a batch brings. Knows no kernel.
"""

from collections import defaultdict

import torch
from torch import nn

from actorllm.layers.attention import Attention, Sinks
from actorllm.layers.latent_attention import LatentAttention
from actorllm.layers.linear import HeadSplit
from actorllm.layers.norm import HeadNorm, LayerNorm, RMSNorm
from actorllm.models.contract import CausalLM
from actorllm_kernels.backends import USUAL_SIZES, Heads, Sizes
from actorllm_kernels.quantize import LARGEST


def served_heads(model: CausalLM, kv_dtype: torch.dtype | None) -> dict[str, set[Heads]]:
    """By the operators that will be asked for them, in a cache of `kv_dtype` or of the model's own dtype (None).

    Of an attention whose heads no module beside it splits there is nothing: its kernels are checked when they are first used.
    """
    served: dict[str, set[Heads]] = defaultdict(set)
    for block in model.modules():
        for layer in block.children():
            split = next((split for module in block.modules() if isinstance(split := getattr(module, "split", None), HeadSplit)), None)
            if isinstance(layer, Attention | LatentAttention) and split is not None:
                group = model.cache_groups[layer.group]
                buffers = {buffer.name: buffer for buffer in group.buffers}
                quantized = kv_dtype if kv_dtype in LARGEST and not any(buffer.is_exact for buffer in group.buffers) else None
                if isinstance(layer, LatentAttention):
                    latent, rotated = buffers["latent"].parts
                    served["latent_attention"].add(Heads(split.num_local_heads, 1, latent + rotated, latent, quantized))
                    served["latent_store"].add(Heads(split.num_local_heads, 1, rotated, latent, quantized))
                else:
                    (num_kv_heads, key_size), value_size = buffers["k"].shape, buffers["v"].shape[1]
                    heads = Heads(split.num_local_heads, num_kv_heads, key_size, value_size, quantized)
                    served["attention"].add(heads._replace(extras=_extras(layer, block)))
                    served["rotary_store"].add(heads)
    return served


def served_sizes(model: CausalLM, *, max_running: int, context: int) -> Sizes:
    """For at most so many rows of at most `context` tokens."""
    modules = [*model.modules()]
    windows = {module.window for module in modules if isinstance(module, Attention) and module.window is not None}
    norms = {module.size for module in modules if isinstance(module, RMSNorm | LayerNorm)}
    norms |= {module.shape[1] for module in modules if isinstance(module, HeadNorm)}
    return Sizes(max_running, context, frozenset(windows), frozenset(norms) or USUAL_SIZES.norms, model.config.vocab_size)


def _extras(layer: Attention, block: nn.Module) -> frozenset[str]:
    has_sinks = any(isinstance(module, Sinks) for module in block.modules())
    known = {"window": layer.window, "soft cap": layer.soft_cap, "slopes": layer.slopes, "sinks": has_sinks or None}
    return frozenset(name for name, value in known.items() if value is not None)
