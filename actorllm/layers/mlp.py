"""The feed-forward block of gated decoders. Legend: T tokens, D hidden size."""

from torch import Tensor, nn

from actorllm.layers.activation import activation
from actorllm.layers.linear import GateUpLinear, RowLinear
from actorllm.layers.shard import Shard


class GatedMLP(nn.Module):
    """`down_proj(act(gate_proj(x)) * up_proj(x))` (arXiv 2002.05202), split over ranks in the middle."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, activation_name: str, shard: Shard, bias: bool = False
    ) -> None:
        super().__init__()
        self.gate_up_proj = GateUpLinear(hidden_size, intermediate_size, shard=shard, bias=bias)
        self.down_proj = RowLinear(intermediate_size, hidden_size, shard=shard, bias=bias)
        self.activation = activation(activation_name)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate, up = self.gate_up_proj.gate_and_up(x_TD)
        return self.down_proj(self.activation(gate) * up)
