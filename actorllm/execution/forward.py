"""The order in which a model is driven. Whoever holds all layers and whoever holds one at a time share this.

Knows no sampling, no scheduling and no weights.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from actorllm.layers.batch import Batch
from actorllm.models.contract import CausalLM


def forward(model: CausalLM, batch: Batch, *, layer: Callable[[int], nn.Module] | None = None) -> Any:
    """The state after the last layer; `model.norm(state)` gives the final hidden states of all tokens.

    `layer(i)` provides layer i when it is its turn (the model's own if None), so a caller may load it just then.
    """
    layer = layer or model.layer
    batch.tables = model.prepare(batch)
    state = model.embed(batch)
    for index in range(model.config.num_layers):
        state = layer(index)(state, batch)
    return state
