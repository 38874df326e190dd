"""From a folder to devices that run: plans, refusals, and a real model on one and two ranks."""

import asyncio
import json
from pathlib import Path

import pytest
import torch

import actorllm_echo
from actorllm.errors import CheckpointError, ModelError, NotEnoughMemory, PluginMissing, SettingsError, UnsupportedConfig
from actorllm.execution.devices import Devices
from actorllm.execution.load import load_model
from actorllm.execution.model_plan import plan_model, plan_slots
from actorllm.layers.shard import Shard
from actorllm.messages import Step, StepDone, unpack
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings, SchedulingSettings
from actorllm.weights.random import RandomWeights

MIB = 2**20
CPU = torch.device("cpu")
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "float32",
}  # fmt: skip


def settings(**execution) -> EngineSettings:
    return EngineSettings(
        model=ModelSettings(context=64),
        scheduling=SchedulingSettings(max_running=4),
        execution=ExecutionSettings(threads=1, **execution),
    )


def folder(path: Path, config: object) -> Path:
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


async def run(devices: Devices, step: Step) -> StepDone:
    future = asyncio.get_running_loop().create_future()
    devices.run(step, lambda done, error: future.set_exception(error) if error else future.set_result(done))
    return await future


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ("{", CheckpointError, "not JSON"),
        ("[" * 100_000, CheckpointError, "not JSON"),
        ("[]", CheckpointError, "not a JSON object"),
        ({}, UnsupportedConfig, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, UnsupportedConfig, "architectures"),
        ({"architectures": ["NoSuchForCausalLM"]}, PluginMissing, "NoSuchForCausalLM"),
        (LLAMA | {"torch_dtype": "int3"}, UnsupportedConfig, "int3"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, UnsupportedConfig, "quantized"),
        (LLAMA | {"max_position_embeddings": 32}, SettingsError, "1 to 32"),
        (LLAMA, CheckpointError, "safetensors"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(tmp_path: Path, config: object, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        plan_model(folder(tmp_path, config), settings())


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plan_model(tmp_path, settings())


class TestSlots:
    """How many slots a rank gets: a token of the echo model takes 2 layers of 3 floats, 24 bytes."""

    def slots(self, free_bytes: int, **execution) -> int:
        chosen = settings(**execution)
        plan = plan_model(actorllm_echo.directory(), chosen)
        groups = plan.build(Shard()).cache_groups
        (size,) = plan_slots(groups, plan, settings=chosen, free_bytes=free_bytes, share=0.5)
        return size.num_slots

    def test_by_default_every_row_gets_a_whole_context(self) -> None:
        assert self.slots(MIB) == 4 * 64

    def test_little_memory_is_shared(self) -> None:
        assert self.slots(2 * 24 * 100) == 100

    def test_memory_and_counts_can_be_given(self) -> None:
        assert self.slots(MIB, kv_memory=24 * 77) == 77
        assert self.slots(MIB, kv_slots=5) == 5

    @pytest.mark.parametrize("execution", [{}, {"kv_memory": 24 * 63}, {"kv_memory": 24 * 64}])
    def test_too_little_memory_is_an_error_with_numbers(self, execution: dict) -> None:
        with pytest.raises(NotEnoughMemory, match=r"\d"):
            self.slots(24 * 63, **execution)

    def test_weights_that_do_not_fit(self, stories_dir: Path) -> None:
        plan = plan_model(stories_dir, settings())
        assert plan.num_weight_bytes > MIB // 2
        with pytest.raises(NotEnoughMemory, match="weights"):
            plan_slots(plan.build(Shard()).cache_groups, plan, settings=settings(), free_bytes=MIB // 2, share=0.5)


@pytest.mark.parametrize("num_ranks", [1, 2])
async def test_a_real_model_gives_its_golden_text(stories_dir: Path, new_steps, num_ranks: int) -> None:
    ids = json.loads((stories_dir / "golden_greedy.json").read_text())["greedy_ids"]
    progress: list[tuple[int, int]] = []
    loaded = await load_model(stories_dir, settings(tensor_parallel=num_ranks), on_progress=lambda *read: progress.append(read))
    assert (loaded.architecture, loaded.dtype, loaded.context.length) == ("LlamaForCausalLM", "float32", 64)
    assert len(progress) > 2
    assert [read == total for read, total in progress] == [False] * (len(progress) - 1) + [True]
    steps = new_steps(num_slots=sum(group.num_slots for group in loaded.groups))
    await run(loaded.devices, steps.open(2).feed(2, ids[:3]).step())
    found = list(unpack((await run(loaded.devices, steps.feed(2, ids[3:5], to=[2]).step())).sampled))
    while len(found) < 40:
        found += unpack((await run(loaded.devices, steps.decode(2).step())).sampled)
    assert found == ids[5:45]
    assert await loaded.devices.close()


async def test_two_ranks_sample_what_one_samples(tmp_path: Path, new_steps) -> None:
    texts = []
    for num_ranks in (1, 2):
        loaded = await load_model(
            folder(tmp_path, LLAMA),
            settings(tensor_parallel=num_ranks),
            new_source=lambda device, dtype, storage: RandomWeights(1, std=0.2, device=device, dtype=dtype, storage=storage),
        )
        steps = new_steps(num_slots=sum(group.num_slots for group in loaded.groups))
        steps.open(0, temperature=1.0, top_p=0.9, seed=3, repetition_penalty=1.2).open(1, temperature=0.7, top_k=9)
        found = [(await run(loaded.devices, steps.feed(0, [5, 6], to=[0]).feed(1, [9], to=[1]).step())).sampled]
        for _ in range(20):
            found.append((await run(loaded.devices, steps.decode(0, 1).step())).sampled)
        texts.append(found)
        await loaded.devices.close()
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5, "the tokens vary"


async def test_a_broken_checkpoint_leaves_no_thread(tmp_path: Path, stories_dir: Path) -> None:
    (tmp_path / "config.json").write_bytes((stories_dir / "config.json").read_bytes())
    data = (stories_dir / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        await load_model(tmp_path, settings())


@pytest.mark.parametrize(("device", "said"), [("tpu9", "tpu9"), ("meta", "meta"), ("cuda", "CUDA")])
async def test_devices_that_are_not_there(device: str, said: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        device, said = "meta", "meta"
    with pytest.raises(SettingsError, match=said):
        await load_model(actorllm_echo.directory(), settings(device=device))
