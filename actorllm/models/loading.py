"""Fills a model with the weights of a checkpoint, and insists that both fit exactly. Knows no file format."""

from actorllm.models.contract import CausalLM
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.source import load_module


def load_weights(model: CausalLM, checkpoint: Checkpoint) -> None:
    """Pull all weights. Raises `TensorMissing` or `TensorLeftOver` naming the tensors, before anything is read."""
    survey_weights(model, checkpoint)
    load_module(model, checkpoint)


def survey_weights(model: CausalLM, checkpoint: Checkpoint) -> None:
    """Compare names and shapes and read nothing: the model's weights come on the meta device. Raises as `load_weights`."""
    checkpoint.rename(model.renamed_prefixes)
    checkpoint.transpose(model.transposed_linears)
    checkpoint.tie(model.tied_tensors())
    with checkpoint.survey():
        load_module(model, checkpoint)
    checkpoint.finish(model.ignored_tensors)
