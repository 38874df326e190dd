"""From settings to devices that are ready to run steps: plan, start the threads, load each rank's weights on its own.

Knows no actor and no tokenizer: the caller says which ids are never valid.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from actorllm.cache.sizing import GroupSize
from actorllm.context import Context
from actorllm.errors import SettingsError
from actorllm.execution.device_choice import chosen_device
from actorllm.execution.device_thread import DeviceThread
from actorllm.execution.devices import Devices
from actorllm.execution.machine import KV_SHARE, Machine, give_back_freed_memory
from actorllm.execution.model_plan import ModelPlan, has_weights, plan_model, plan_slots
from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.execution.served_heads import served_heads, served_sizes
from actorllm.layers.collectives import ThreadRanks
from actorllm.layers.shard import Shard
from actorllm.models.contract import CausalLM
from actorllm.models.loading import load_weights
from actorllm.settings import EngineSettings, ExecutionSettings
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.formats import Format
from actorllm.weights.source import WeightSource, load_module
from actorllm_kernels import native
from actorllm_kernels.backends import is_triton_here

GPU_KV_SHARE = 0.85
"""The part of a GPU's free memory that the KV cache may take: nothing else competes for it but activations."""

Progress = Callable[[int, int], None]
NewSource = Callable[[torch.device, torch.dtype, Format], WeightSource]

TIDY_BYTES = 32 * 2**20
"""Of a checkpoint that are read before what was freed meanwhile goes back to the system."""

MOST_THREADS = 256
"""Asked for by hand, on machines with fewer processors."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready, and what others must know of it. `groups` are one rank's cache sizes."""

    devices: Devices
    device: torch.device
    architecture: str
    dtype: str
    vocab_size: int
    context: Context
    num_weight_bytes: int
    groups: tuple[GroupSize, ...]


async def load_model(
    directory: Path,
    settings: EngineSettings,
    *,
    find_invalid: Callable[[int], Sequence[int]] | None = None,
    on_progress: Progress | None = None,
    new_source: NewSource | None = None,
) -> LoadedModel:
    """Load the model of `directory`.

    `find_invalid(vocab_size)` names ids that are never sampled. `on_progress(read, total)` is called on device threads
    with bytes of files, and at the end, once, with the total twice. `new_source(device, dtype, storage)` gives the weights in place of
    the directory's files (random weights, say).

    Raises `ModelError`, `PluginError` or `SettingsError`; nothing is left running then.
    """
    device = chosen_device(settings.execution)
    num_ranks = settings.execution.tensor_parallel
    num_threads = max(1, step_threads(settings.execution) // num_ranks)
    plan = plan_model(directory, settings, has_files=new_source is None)
    ranks = ThreadRanks.group(num_ranks, timeout=settings.execution.step_timeout) if num_ranks > 1 else []
    shards = [Shard(rank, num_ranks, collectives) for rank, collectives in enumerate(ranks)] or [Shard()]
    models = [plan.build(shard) for shard in shards]
    groups = _plan_groups(models[0], plan, settings=settings, device=device)
    num_slots = tuple(group.num_slots for group in groups if not group.is_state)
    sizes = RunnerSizes(num_slots=num_slots, max_running=settings.scheduling.max_running, context=plan.context)
    loader = _Loader(plan, device, new_source=new_source, on_progress=on_progress)
    invalid = tuple(find_invalid(plan.config.vocab_size)) if find_invalid else ()

    def build(model: CausalLM) -> ResidentRunner:
        _settle_kernels(device, model, plan=plan, sizes=sizes)
        loader.load(model)
        give_back_freed_memory()  # of values that became codes, before the cache takes its own
        return ResidentRunner(model, sizes, dtype=plan.precision.dtype, kv_dtype=plan.kv_dtype, device=device, invalid_ids=invalid)

    with ExitStack() as undo:
        threads = [DeviceThread(f"{device} rank {shard.rank}", device, num_threads=num_threads) for shard in shards]
        for thread in threads:
            undo.callback(thread.close)
        builds = [partial(build, model) for model in models]
        runners = await asyncio.gather(*(thread.submit(call) for thread, call in zip(threads, builds, strict=True)))
        undo.pop_all()
    if on_progress is not None:
        on_progress(plan.num_file_bytes, plan.num_file_bytes)
    return LoadedModel(
        devices=Devices(threads, runners, ranks=ranks),
        device=device,
        architecture=plan.architecture,
        dtype=plan.precision.name,
        vocab_size=plan.config.vocab_size,
        context=Context(plan.context, largest=plan.config.context_len),
        num_weight_bytes=plan.num_weight_bytes,
        groups=groups,
    )


def _settle_kernels(device: torch.device, model: CausalLM, *, plan: ModelPlan, sizes: RunnerSizes) -> None:
    """Which kernels run: compiled or checked now rather than within the first request's step, with warnings of what is amiss."""
    if device.type == "cpu":
        native.library()
    elif is_triton_here():
        from actorllm_kernels import self_check  # Triton takes a second to import, and is not there without a GPU

        served = served_sizes(model, max_running=sizes.max_running, context=sizes.context)
        self_check.failing(device, plan.precision.dtype, served_heads(model, plan.kv_dtype), served)


def _plan_groups(model: CausalLM, plan: ModelPlan, *, settings: EngineSettings, device: torch.device) -> tuple[GroupSize, ...]:
    """One rank's cache sizes."""
    free, share = free_memory(device)
    free_bytes = free // settings.execution.tensor_parallel
    return plan_slots(model.cache_groups, plan, settings=settings, free_bytes=free_bytes, share=share)


def free_memory(device: torch.device) -> tuple[int, float]:
    """Bytes that are free on the device, and the share of them that a KV cache may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], GPU_KV_SHARE
    return Machine().memory_available(), KV_SHARE


class _Loader:
    """Loads ranks; progress is counted over all of them."""

    def __init__(
        self, plan: ModelPlan, device: torch.device, *, new_source: NewSource | None, on_progress: Progress | None
    ) -> None:
        self._plan = plan
        self._device = device
        self._new_source = new_source
        self._on_progress = on_progress
        self._num_read = 0
        self._num_untidied = 0

    def load(self, model: CausalLM) -> None:
        """Pull all weights of one rank, and check that no tensor of the checkpoint is left over."""
        if not has_weights(model):
            return
        if self._new_source is not None:
            load_module(model, self._new_source(self._device, self._plan.precision.dtype, self._plan.kept))
            return
        plan = self._plan
        with Checkpoint.open(
            plan.directory, device=self._device, dtype=plan.precision.dtype, storage=plan.kept, on_progress=self._count
        ) as checkpoint:
            load_weights(model, checkpoint)

    def _count(self, num_bytes: int) -> None:
        self._num_read += num_bytes
        self._num_untidied += num_bytes
        if self._num_untidied >= TIDY_BYTES:
            self._num_untidied = 0
            give_back_freed_memory()
        if self._on_progress is not None:
            # the end is told once, by whoever knows that all ranks are ready
            total = self._plan.num_file_bytes
            self._on_progress(min(self._num_read, total - 1), total)


def step_threads(settings: ExecutionSettings) -> int:
    """Threads of a step; raises `SettingsError` for so many that libgomp would end the process."""
    usual = Machine().num_threads()
    most = max(MOST_THREADS, usual)
    if settings.threads is not None and settings.threads > most:
        raise SettingsError(
            f"--threads is {settings.threads}, but at most {most} are started: leave it out for one on each of the {usual} processors that "
            "this process may use (more than these make steps slower)"
        )
    return settings.threads or usual
