"""The feed-forward blocks of decoders, split over ranks in the middle. Legend: T tokens, D hidden size."""

from torch import Tensor, nn

from actorllm.layers.activation import activation, gated
from actorllm.layers.linear import ColumnLinear, GateUpLinear, RowLinear
from actorllm.layers.shard import Shard


class MLP(nn.Module):
    """`down(act(up(x)))`; `names` are those of up and down in the checkpoint."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation_name: str,
        shard: Shard,
        names: tuple[str, str],
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.up = ColumnLinear(hidden_size, intermediate_size, name=names[0], shard=shard, bias=bias)
        self.down = RowLinear(intermediate_size, hidden_size, shard=shard, bias=bias, name=names[1])
        self.activation = activation(activation_name)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_TD)))


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` (arXiv 2002.05202).

    `names` are those of the two inputs (or of one linear that holds both, see `GateUpLinear`) and of the output.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation_name: str,
        shard: Shard,
        bias: bool = False,
        names: tuple[tuple[str, str] | str, str] = (("gate_proj", "up_proj"), "down_proj"),
    ) -> None:
        super().__init__()
        self.gate_up = GateUpLinear(hidden_size, intermediate_size, shard=shard, bias=bias, names=names[0])
        self.down = RowLinear(intermediate_size, hidden_size, shard=shard, bias=bias, name=names[1])
        self.product = gated(activation_name)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(self.gate_up.gated(x_TD, self.product))
