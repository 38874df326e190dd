"""A transformers model as the reference: random weights that make differences visible, and its logits.

Takes the model as a plain torch module and does not import transformers.

Legend: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LOGITS_STD = 2.0
"""Logits that spread less would hide faults behind a tolerance."""
MAX_SCALINGS = 4
"""Once is enough where logits are a linear function of what is scaled; a soft cap needs some steps more."""


@torch.no_grad()
def randomize(model: Any, seed: int) -> None:
    """Give every parameter of a transformers causal language model random values, with logits that spread by `LOGITS_STD`.

    Matrices keep the size of what passes through them; norms and biases, which start as ones and zeros, vary too,
    so that leaving one out shows.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 * 1.5)
        else:
            parameter.copy_(noise * 0.2 + name.endswith("weight"))
    vocab_size = getattr(model.config, "text_config", model.config).vocab_size
    ids = torch.randint(vocab_size, (32,), generator=generator).tolist()
    for _ in range(MAX_SCALINGS):
        factor = LOGITS_STD / reference_logits(model, ids).std().item()
        scale_logits(model, factor)
        if 0.9 < factor < 1.1:
            break


def scale_logits(model: Any, factor: float) -> None:
    """Multiply the logits of a model by `factor`, up to a soft cap, at its head, or at its last norm for a head that is tied.

    A model with a tied head and norms without weights stays as it is.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is not embedding.weight:
        head.weight.mul_(factor)
        if getattr(head, "bias", None) is not None:
            head.bias.mul_(factor)
        return
    norms = [
        (name, module)
        for name, module in model.named_modules()
        if ("norm" in name or "ln_f" in name) and getattr(module, "weight", None) is not None
    ]
    after_layers = [(name, module) for name, module in norms if not any(map(str.isdigit, name.split(".")))]
    if not norms:
        return
    last = (after_layers or norms)[-1][1]
    offset = 1.0 if torch.equal(type(last)(last.weight.shape[0]).weight, torch.zeros_like(last.weight)) else 0.0  # 1 + weight
    last.weight.copy_((last.weight + offset) * factor - offset)
    if getattr(last, "bias", None) is not None:
        last.bias.mul_(factor)


@torch.inference_mode()
def reference_logits(model: Any, ids: Sequence[int], *, one_by_one_from: int | None = None) -> Tensor:
    """[T, V] teacher-forced float32 logits of a transformers model.

    From position `one_by_one_from` on, tokens are fed one at a time on its cache, as `generate` would: a dynamic
    rotary base differs then.
    """
    first = len(ids) if one_by_one_from is None else min(one_by_one_from, len(ids))
    inputs = torch.tensor([list(ids)])
    model(input_ids=inputs[:, :1])  # a dynamic base stays with the longest sequence seen until a short one comes
    out = model(input_ids=inputs[:, :first], use_cache=True)
    parts = [out.logits[0]]
    for position in range(first, len(ids)):
        out = model(input_ids=inputs[:, position : position + 1], past_key_values=out.past_key_values, use_cache=True)
        parts.append(out.logits[0])
    return torch.cat(parts).float()
