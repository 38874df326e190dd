"""What steps have to read and to multiply, counted in a model's modules: what measured rates are shares of.

Weights of products and the cache alone: norms, biases and routers are small beside them. Knows no rate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actorllm.execution.model_plan import plan_model
from actorllm.layers.embedding import Head
from actorllm.layers.experts import Experts, Router
from actorllm.layers.latent_attention import LatentHeads
from actorllm.layers.linear import FusedLinear, RowLinear
from actorllm.layers.shard import Shard
from actorllm.models.contract import CausalLM
from actorllm.settings import EngineSettings


@dataclass(frozen=True)
class ExpertLayer:
    """Of `num_experts` with `num_weights` each, a token is multiplied by `top_k`."""

    num_experts: int
    top_k: int
    num_weights: int


@dataclass(frozen=True)
class CacheReads:
    """Bytes of one token of a cache group, of which the last `window` are read (None: all); or of a sequence's state."""

    num_bytes: int
    window: int | None
    is_state: bool


@dataclass(frozen=True)
class StepWork:
    """Weights of the layers' linears and of the head, with their bits; layers of experts; and the cache. Over all ranks."""

    num_linear: int
    num_head: int
    linear_bits: float
    head_bits: float
    experts: tuple[ExpertLayer, ...]
    cache: tuple[CacheReads, ...]

    @classmethod
    def of(cls, directory: Path, settings: EngineSettings) -> "StepWork":
        """Of the model that would be served. Raises what `plan_model` does."""
        plan = plan_model(directory, settings)
        model, precision = plan.build(Shard()), plan.precision
        linear_form = precision.kept_form or precision.form
        plain = 8.0 * precision.dtype.itemsize
        return cls(
            num_linear=sum(map(_num_weights, model.modules())),
            num_head=sum(module.shape[0] * module.shape[1] for module in model.modules() if isinstance(module, Head)),
            linear_bits=plain if linear_form is None else linear_form.bits_per_value,
            head_bits=plain if precision.table_form is None else precision.table_form.bits_per_value,
            experts=tuple(_expert_layers(model)),
            cache=tuple(
                CacheReads(group.bytes_per_token(precision.dtype, plan.kv_dtype), group.window, group.is_state)
                for group in model.cache_groups
            ),
        )

    def decode_bytes(self, num_rows: int, num_tokens: float) -> float:
        """That a step of `num_rows` requests reads, each of which has `num_tokens` in the cache; experts as if chosen evenly."""
        chosen = sum(
            layer.num_weights * layer.num_experts * (1 - (1 - layer.top_k / layer.num_experts) ** num_rows) for layer in self.experts
        )
        weights = ((self.num_linear + chosen) * self.linear_bits + self.num_head * self.head_bits) / 8
        return weights + num_rows * sum(group.num_bytes * _num_read(group, num_tokens) for group in self.cache)

    def product_ops(self, num_tokens: int, *, num_sampled: int = 1) -> float:
        """Multiplications and additions with weights for `num_tokens`, of which `num_sampled` pass the head. Attention's are left out."""
        chosen = sum(layer.num_weights * layer.top_k for layer in self.experts)
        return 2.0 * (num_tokens * (self.num_linear + chosen) + num_sampled * self.num_head)


def _num_read(group: CacheReads, num_tokens: float) -> float:
    if group.is_state:
        return 1
    return num_tokens if group.window is None else min(num_tokens, group.window)


def _num_weights(module: object) -> int:
    if isinstance(module, FusedLinear):
        return module.num_inputs * sum(claim.rows[1] - claim.rows[0] for claim in module.claims)
    if isinstance(module, RowLinear):
        return module.num_inputs * module.num_outputs
    if isinstance(module, LatentHeads):
        return module.split.num_heads * (module.key_size + module.value_size) * module.latent_size
    return 0


def _expert_layers(model: CausalLM) -> Iterator[ExpertLayer]:
    """A router lies beside its experts; of experts without one all are counted."""
    for block in model.modules():
        children = [*block.children()]
        top_k = next((child.routing.top_k for child in children if isinstance(child, Router)), None)
        for sizes in (child.sizes for child in children if isinstance(child, Experts)):
            num_weights = 3 * sizes.hidden_size * sizes.intermediate_size
            yield ExpertLayer(sizes.num_experts, top_k or sizes.num_experts, num_weights)
