"""The plugin contract, version 1: all that a model architecture has to provide.

A plugin registers a `CausalLM` subclass under the entry-point group `actorllm.models.v1`; the entry point's name
is the Hugging Face architecture. The class is built from its config and a `Shard`, made of `actorllm.layers` whose
attribute names follow the checkpoint, and never touches weights, ranks or formats itself. The runner drives
`prepare`, `embed`, `layer`, `norm` and `head`; a runner may hold all layers or one at a time.

Legend: T tokens, D hidden size, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from actorllm.errors import UnsupportedConfig
from actorllm.layers.batch import Batch
from actorllm.layers.rotary import Rotary
from actorllm.layers.shard import Shard
from actorllm.models import CONTRACT_VERSION, ENTRY_POINT_GROUP
from actorllm.models.config import ConfigReader

__all__ = [
    "CONTRACT_VERSION",
    "ENTRY_POINT_GROUP",
    "CacheBuffer",
    "CacheGroup",
    "CausalLM",
    "ConfigReader",
    "ModelConfig",
    "UnsupportedConfig",
    "window_groups",
]


@dataclass(frozen=True)
class CacheBuffer:
    """A named buffer with `shape` values per token, in the dtype of the cache.

    Where the cache has one byte a value (`--kv-cache int8`), each head, which is the last axis of `shape`, has a float32 scale
    beside it, or each of the `parts` of those sizes that it consists of, where they differ in kind. A buffer that `is_exact`
    stays in the dtype that the model computes in.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[int, ...] = ()
    is_exact: bool = False

    def num_values(self) -> int:
        """Values per token."""
        return prod(self.shape)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Of a token's scales, where it has some."""
        return (*self.shape[:-1], len(self.parts)) if self.parts else self.shape[:-1]

    def num_bytes(self, dtype: torch.dtype, kv_dtype: torch.dtype | None) -> int:
        """Bytes per token in a cache of `kv_dtype`, or of the model's own `dtype` (None)."""
        kept = dtype if kv_dtype is None or self.is_exact else kv_dtype
        num_scales = prod(self.scale_shape) if kept.itemsize == 1 else 0
        return self.num_values() * kept.itemsize + num_scales * torch.float32.itemsize


@dataclass(frozen=True)
class CacheGroup:
    """Layers whose tokens live and die together: each has the same `buffers`, and with a `window` W only
    the last W tokens of a sequence are ever read (None: all of them).

    With `is_state` a sequence has one entry in each buffer rather than one a token, at its device row (`Span.row`): what a
    recurrent layer carries on. A sequence's first tokens (`query_len == seq_len`) find an older one's there. These groups come last.
    """

    name: str
    layers: tuple[int, ...]
    buffers: tuple[CacheBuffer, ...]
    window: int | None = None
    is_state: bool = False

    def bytes_per_token(self, dtype: torch.dtype, kv_dtype: torch.dtype | None = None) -> int:
        """Bytes that one token (or with `is_state` one sequence) takes in this group, over all its layers, its scales included; see
        `CacheBuffer.num_bytes`."""
        kv_dtype = None if self.is_state else kv_dtype
        return len(self.layers) * sum(buffer.num_bytes(dtype, kv_dtype) for buffer in self.buffers)


def window_groups(
    windows: Sequence[int | None], buffers: tuple[CacheBuffer, ...]
) -> tuple[tuple[CacheGroup, ...], tuple[int, ...]]:
    """Cache groups for layers that attend within `windows[i]` (None: everything), and each layer's group index."""
    distinct = list(dict.fromkeys(windows))
    groups = tuple(
        CacheGroup(
            name="full" if window is None else f"window{window}",
            layers=tuple(index for index, other in enumerate(windows) if other == window),
            buffers=buffers,
            window=window,
        )
        for window in distinct
    )
    return groups, tuple(distinct.index(window) for window in windows)


class ModelConfig(Protocol):
    """What the engine reads of a plugin's frozen config."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_len(self) -> int:
        """The most tokens the model was made for."""
        ...

    @property
    def num_layers(self) -> int: ...

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json. Consumes every key: raises `UnsupportedConfig` for one that changes the
        computation and is not implemented."""
        ...


class CausalLM(nn.Module):
    """Base of every plugin model. How its checkpoints differ from its modules is declared as data.

    `ignored_tensors` names tensors that are not weights, with reasons (glob pattern -> reason); `tied_tensors` maps a
    name that may be absent to the tensor it aliases; `renamed_prefixes` maps a prefix of the checkpoint's names to the
    modules' ("transformer." -> "model."); `transposed_linears` are glob patterns of linears stored as [in, out] (Conv1D).
    `example_config` is a tiny config.json for `actorllm plugin check`, where the usual keys do not do.
    """

    config_class: ClassVar[type]
    ignored_tensors: ClassVar[Mapping[str, str]] = {}
    renamed_prefixes: ClassVar[Mapping[str, str]] = {}
    transposed_linears: ClassVar[Sequence[str]] = ()
    example_config: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Any, shard: Shard) -> None:
        super().__init__()
        self.config = config
        self.shard = shard

    @classmethod
    def for_context(cls, config: Any, context: int) -> Any:
        """The config of a server whose sequences have at most `context` tokens, where the computation depends on that length.

        Every `Rotary` that is a field of the config is told (longrope chooses its factors by it).
        """
        if not is_dataclass(config) or isinstance(config, type):
            return config
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        rotaries = {name: value.for_context(context) for name, value in values.items() if isinstance(value, Rotary)}
        return replace(config, **rotaries)

    @property
    @abstractmethod
    def cache_groups(self) -> Sequence[CacheGroup]:
        """The cache groups of this rank (buffer shapes are this rank's share)."""

    def tied_tensors(self) -> Mapping[str, str]:
        """Checkpoint names that may be absent because they alias another (tied head -> embedding)."""
        return {}

    def prepare(self, batch: Batch) -> Any:
        """Tables shared by all layers of a step (rotary cos and sin); stored in `batch.tables`."""
        return None

    @abstractmethod
    def embed(self, batch: Batch) -> Any:
        """The first state: a tensor or a dataclass/tuple of tensors that the runner treats as opaque."""

    @abstractmethod
    def layer(self, index: int) -> nn.Module:
        """Layer `index`; called as `state = model.layer(i)(state, batch)`."""

    @abstractmethod
    def norm(self, state: Any) -> Tensor:
        """The final hidden states [T, D] from the last layer's state."""

    @abstractmethod
    def head(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, V] (whole vocabulary, gathered over ranks) in float32."""
