"""Compares a plugin with transformers' model of the same config, through a checkpoint on disk.

transformers is imported only when a comparison is made. Each variation changes one setting from the given config, so
that a fault shows under the name of the setting it neglects.

Legend: T tokens, V vocabulary.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actorllm.layers.attention import Attention
from actorllm.layers.shard import Shard
from actorllm.models.contract import CausalLM
from actorllm.models.loading import load_weights, survey_weights
from actorllm.testing.reference import randomize
from actorllm.testing.tiny import logits_in_chunks
from actorllm.weights.checkpoint import Checkpoint, tensor_shapes
from actorllm.weights.stored import stored_format

# A setting, and a value that changes the logits visibly; applied where the config has the key.
VARIED = (
    ("rms_norm_eps", 0.5),
    ("layer_norm_eps", 0.5),
    ("rope_theta", 100.0),
    ("partial_rotary_factor", 0.5),
    ("sliding_window", 5),
    ("tie_word_embeddings", True),
    ("tie_word_embeddings", False),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("use_qkv_bias", True),
    ("use_qk_norm", True),
    ("qk_layernorm", True),
    ("use_parallel_residual", True),
    ("logit_scale", 2.0),
    ("hidden_act", "gelu"),
    ("hidden_activation", "silu"),
    ("query_pre_attn_scalar", 100),
    ("attn_logit_softcapping", 1.0),
    ("final_logit_softcapping", 4.0),
    ("rope_local_base_freq", 50.0),
    ("head_dim", 12),
    ("num_key_value_heads", 1),
    ("num_experts_per_tok", 1),
    ("norm_topk_prob", True),
    ("norm_topk_prob", False),
    ("decoder_sparse_step", 2),
    ("routed_scaling_factor", 2.5),
    ("layer_norm_epsilon", 0.5),
    ("activation", "relu"),
    ("activation_function", "gelu"),
    ("n_inner", 40),
    ("ffn_hidden_size", 40),
    ("scale_attn_weights", False),
    ("scale_attn_by_inverse_layer_idx", True),
    ("multi_query", False),
    ("apply_residual_connection_post_layernorm", True),
    ("alibi", True),
    ("bias", True),
    ("parallel_attn", False),
    ("num_kv_heads", 1),
    ("num_ln_in_parallel_attn", 1),
    ("do_layer_norm_before", False),
    ("_remove_final_layer_norm", True),
    ("word_embed_proj_dim", 16),
    ("enable_bias", False),
    ("layer_norm_elementwise_affine", False),
)


def reference_exists(config: Mapping[str, Any]) -> bool:
    """Whether transformers is installed and knows a causal language model for the config's `model_type`."""
    return config.get("model_type") in _causal_models()


def no_reference(config: Mapping[str, Any]) -> str:
    """Why a config's model cannot be compared with transformers."""
    return f"transformers is absent, or does not know the model_type {config.get('model_type')!r}"


def reference_type(architecture: str) -> str | None:
    """transformers' `model_type` of an architecture; None if it is not installed or does not know it."""
    if architecture not in _causal_models().values():
        return None
    return getattr(import_module("transformers"), architecture).config_class.model_type


def _causal_models() -> Mapping[str, str]:
    """`model_type` -> architecture of the causal language models that transformers has."""
    if find_spec("transformers") is None:
        return {}
    return import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def variations(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, config): as given, then with one setting changed at a time."""
    yield "as given", dict(config)
    for key, value in VARIED:
        if key in config and config[key] != value:
            yield f"{key} = {value}", {**config, key: value}


@contextmanager
def saved_reference(config: Mapping[str, Any], *, seed: int = 0) -> Iterator[tuple[Any, Path]]:
    """transformers' model of a config with random weights, and the folder of its checkpoint, which lasts as long as the block."""
    transformers = import_module("transformers")
    settings = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    settings.setdefault("pad_token_id", None)  # the usual one may lie outside a tiny vocabulary
    hf_config = transformers.AutoConfig.for_model(config["model_type"], **settings)
    reference = transformers.AutoModelForCausalLM.from_config(hf_config).eval()
    reference.set_experts_implementation("eager")  # the others refuse sizes that are no multiple of 16 bytes
    randomize(reference, seed)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        yield reference, Path(folder)


def is_only_the_scale(model_class: type[CausalLM], folder: Path, *, ids: Sequence[int], wanted_TV: Tensor) -> bool:
    """Whether a model whose logits are not the wanted ones has them once attention's scores are scaled as in most models."""
    config = json.loads((folder / "config.json").read_text())
    head_dim = config.get("head_dim") or config.get("hidden_size", 0) // config.get("num_attention_heads", 1)
    if not head_dim:
        return False
    model = load_folder(model_class, folder)
    for module in model.modules():
        if isinstance(module, Attention):
            module.scale = head_dim**-0.5
    return torch.allclose(logits_in_chunks(model, ids), wanted_TV, rtol=0.0, atol=1e-3 * float(wanted_TV.std()))


def load_reference(folder: Path) -> Any:
    """transformers' model with the weights of a checkpoint folder, in float32."""
    auto = import_module("transformers").AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True).eval()


def load_folder(model_class: type[CausalLM], folder: Path, shard: Shard | None = None) -> CausalLM:
    """A plugin's model with the weights of a checkpoint folder, in float32."""
    model, checkpoint = _open_folder(model_class, folder, shard or Shard())
    with checkpoint:
        load_weights(model, checkpoint)
    return model


def survey_folder(model_class: type[CausalLM], folder: Path) -> str:
    """Compare the names and shapes of a checkpoint's tensors with what a plugin's model pulls. Raises as `survey_weights`."""
    model, checkpoint = _open_folder(model_class, folder, Shard())
    with checkpoint:
        survey_weights(model, checkpoint)
    shapes = tensor_shapes(folder)
    return f"{len(shapes)} tensors, {sum(map(math.prod, shapes.values()))} values"


def _open_folder(model_class: type[CausalLM], folder: Path, shard: Shard) -> tuple[CausalLM, Checkpoint]:
    config = json.loads((folder / "config.json").read_text())
    model = model_class(model_class.config_class.from_hf(config), shard)
    return model, Checkpoint.open(folder, dtype=torch.float32, storage=stored_format(config))
