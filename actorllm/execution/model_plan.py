"""What will be loaded, decided before anything large is read: architecture, precision, context, and cache sizes.

Reads config.json and the sizes of the weight files. Knows no thread and no device memory but the numbers it is given.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from actorllm.cache.sizing import GroupSize, slots_for_budget, slots_needed
from actorllm.errors import CheckpointError, NotEnoughMemory, SettingsError, UnsupportedConfig
from actorllm.execution.device_choice import named_device
from actorllm.execution.machine import default_kv_bytes
from actorllm.execution.precision import DTYPES, Precision, resolve_kv_dtype, resolve_precision
from actorllm.layers.shard import Shard
from actorllm.models.catalog import find_model
from actorllm.models.contract import CacheGroup, CausalLM, ModelConfig
from actorllm.settings import EngineSettings
from actorllm.weights.checkpoint import num_bytes, num_values
from actorllm.weights.compact import CodesFormat, CompactFormat
from actorllm.weights.compressed import CompressedFormat
from actorllm.weights.formats import Format
from actorllm.weights.stored import stored_format
from actorllm_kernels.linear import WeightOnly

MAX_CONFIG_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ModelPlan:
    """A model that can be built. It computes in `precision.dtype` and keeps keys and values in that, or quantized to
    `kv_dtype`; `num_weight_bytes` is what all its weights take in memory, `num_file_bytes` what they take in the checkpoint."""

    directory: Path
    architecture: str
    model_class: type[CausalLM]
    config: ModelConfig
    precision: Precision
    context: int
    storage: Format
    kv_dtype: torch.dtype | None = None
    num_weight_bytes: int = 0
    num_file_bytes: int = 0

    @property
    def kept(self) -> Format:
        """What its linears become in memory."""
        precision = self.precision
        if precision.form is None:
            return self.storage
        forms = {"table_form": precision.table_form, "kept_form": precision.kept_form}
        return CompactFormat(self.storage, precision.form, **forms, dtype=precision.dtype)

    def build(self, shard: Shard) -> CausalLM:
        """The model of one rank, without weights."""
        return self.model_class(self.config, shard)


def plan_model(directory: Path, settings: EngineSettings, *, has_files: bool = True) -> ModelPlan:
    """Read config.json and decide; without files the weights are made up.

    Raises `CheckpointError`, `UnsupportedConfig`, `PluginError`, `SettingsError`.
    """
    config = read_config(directory)
    storage = stored_format(config)
    architecture = read_architecture(config)
    model_class = find_model(architecture)
    parsed: ModelConfig = model_class.config_class.from_hf(config)
    model, device = settings.model, named_device(settings.execution)
    group_len = None
    if isinstance(storage, CompressedFormat) and storage.num_bits == 4 and storage.can_be_kept:
        group_len = storage.group_len
    precision = resolve_precision(model.dtype, stored_dtype(config), device=device, quantize=model.quantize, group_len=group_len)
    context = settings.model.context or parsed.context_len
    if not 1 <= context <= parsed.context_len:
        raise SettingsError(f"--context {context}: this model was made for 1 to {parsed.context_len} tokens")
    plan = ModelPlan(
        directory=directory,
        architecture=architecture,
        model_class=model_class,
        config=model_class.for_context(parsed, context),
        precision=precision,
        context=context,
        storage=_in_memory(storage, precision, device),
        kv_dtype=resolve_kv_dtype(settings.execution.kv_cache, device=device),
    )
    if not has_files or not has_weights(plan.build(Shard())):
        return plan
    num_weight_bytes = num_values(directory, plan.kept) * precision.dtype.itemsize
    return replace(plan, num_file_bytes=num_bytes(directory), num_weight_bytes=num_weight_bytes)


def _in_memory(storage: Format, precision: Precision, device: torch.device) -> Format:
    """Integer codes of a checkpoint stay codes on GPUs, which lose nothing by it: activations are not rounded there."""
    if device.type == "cpu" or precision.form is not None or not isinstance(storage, CompressedFormat):
        return storage
    return CodesFormat(storage, WeightOnly(storage.num_bits), dtype=precision.dtype)


def read_config(directory: Path) -> dict[str, Any]:
    """The object in config.json; raises `CheckpointError`."""
    path = directory / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"config.json is larger than {MAX_CONFIG_BYTES} bytes: it is no model's configuration")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"cannot read config.json in {directory} ({error.strerror}); give the path of a Hugging Face model folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"config.json in {directory} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"config.json in {directory} is not a JSON object")
    return config


def read_architecture(config: dict[str, Any]) -> str:
    """The one name in `architectures`; raises `UnsupportedConfig`."""
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise UnsupportedConfig(
            f"config.json: architectures is {str(names)[:80]}, but must be a list of one name, as [\"LlamaForCausalLM\"]: download "
            "config.json again, or write the name there that the model's authors give (actorllm plugin list shows those served)"
        )
    return names[0]


def stored_dtype(config: dict[str, Any]) -> torch.dtype:
    """The precision that config.json names; if none, float32, or bfloat16 beside quantized weights."""
    absent = "bfloat16" if config.get("quantization_config") else "float32"
    name = config.get("dtype", config.get("torch_dtype")) or absent
    if name not in DTYPES:
        raise UnsupportedConfig(f"config.json: weights of type {name!r} are not served; known are {', '.join(DTYPES)}")
    return DTYPES[name]


def has_weights(model: CausalLM) -> bool:
    """Whether any layer of the model pulls weights."""
    return any(hasattr(module, "load") for module in model.modules())


def plan_slots(
    groups: Sequence[CacheGroup], plan: ModelPlan, *, settings: EngineSettings, free_bytes: int, share: float
) -> tuple[GroupSize, ...]:
    """The cache of one rank. `free_bytes` is this rank's part of the free memory, its part of the weights included.

    Raises `NotEnoughMemory` with the numbers if the weights, or one sequence of a whole context, do not fit.
    """
    execution, scheduling = settings.execution, settings.scheduling
    weight_bytes = plan.num_weight_bytes // execution.tensor_parallel
    left = free_bytes - weight_bytes
    if left <= 0:
        raise NotEnoughMemory(
            f"the weights take {_mib(weight_bytes)} in {plan.precision.name}, but only {_mib(free_bytes)} of memory are free: "
            "free some, serve with --dtype bfloat16 if that is not set yet, or use a smaller model"
        )
    states = tuple(GroupSize(group.name, scheduling.max_running, is_state=True) for group in groups if group.is_state)
    state_bytes = scheduling.max_running * sum(group.bytes_per_token(plan.precision.dtype) for group in groups if group.is_state)
    groups = [group for group in groups if not group.is_state]
    if execution.kv_slots is not None:
        return (*(GroupSize(group.name, execution.kv_slots, group.window) for group in groups), *states)
    sizes = [(group.name, group.window, group.bytes_per_token(plan.precision.dtype, plan.kv_dtype)) for group in groups]
    step_tokens = scheduling.max_step_tokens
    wanted = state_bytes + scheduling.max_running * sum(
        slots_needed(plan.context, window, step_tokens) * token_bytes for _, window, token_bytes in sizes
    )
    if execution.kv_memory is not None and execution.kv_memory > left:
        raise NotEnoughMemory(f"--kv-memory {execution.kv_memory}: only {_mib(left)} of memory are left beside the weights")
    budget = execution.kv_memory
    if budget is None:
        budget = default_kv_bytes(left, wanted=wanted, share=share)
    slots = slots_for_budget(budget, sizes, context=plan.context, max_step_tokens=step_tokens, state_bytes=state_bytes)
    return (*slots, *states)


def _mib(num: int) -> str:
    return f"{num / 2**20:.0f} MiB"
