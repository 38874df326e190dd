"""A step makes no GPU wait for its host: seen on the meta device, where whatever needs a value fails.

There `item`, `nonzero`, masks as indices and reading back raise; the dispatch hook counts what travels to the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.layers.shard import Shard
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module
from actorllm_echo import EchoConfig, EchoForCausalLM
from actorllm_llama.llama import LlamaForCausalLM

META = torch.device("meta")
VOCAB_SIZE = 1500  # above what a CPU sorts for top-p before it looks whether that was enough


class Journeys(TorchDispatchMode):
    """Records the operators that take values to the device, and those that bring them back, which may not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.there: list[str] = []
        self.back: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {tensor.device.type for tensor in tensors(args, kwargs) if tensor.dim()}
        if given == {"meta"} and torch.device(kwargs.get("device") or META).type == "cpu":
            assert kwargs.get("non_blocking"), f"{operator} waits for the device"
            self.back.append(str(operator))
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        result = operator(*args, **kwargs)
        if "cpu" in given and any(tensor.is_meta for tensor in tensors(result)):
            self.there.append(str(operator))
        return result


class Lists(TorchFunctionMode):
    """Adds to the journeys the lists of which `torch.tensor` makes a tensor on the device: no operator is dispatched for them."""

    def __init__(self, journeys: Journeys) -> None:
        super().__init__()
        self._journeys = journeys

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor) and result.is_meta:
            self._journeys.there.append(f"torch.{function.__name__}")
        return result


@contextmanager
def watched() -> Iterator[Journeys]:
    with Journeys() as journeys, Lists(journeys):
        yield journeys


def tensors(*values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def echo() -> EchoForCausalLM:
    return EchoForCausalLM(EchoConfig(vocab_size=VOCAB_SIZE, context_len=64, num_layers=2), Shard())


def llama() -> LlamaForCausalLM:
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaForCausalLM.config_class.from_hf(config), Shard())
    load_module(model, RandomWeights(device=META))
    return model


@pytest.fixture(params=[echo, llama])
def runner(request, new_steps) -> ResidentRunner:
    sizes = RunnerSizes(num_slots=(512,), max_running=16, context=64)
    runner = ResidentRunner(request.param(), sizes, dtype=torch.float32, device=META, invalid_ids=(VOCAB_SIZE - 1,))
    with watched():  # a model's constants go to the device in its first step
        runner.sample(runner.forward(new_steps().open(15).feed(15, [1], to=[15]).step()))
    return runner


ROWS: list[dict] = [
    {},
    {"temperature": 1.0, "seed": 2**40, "top_k": 5, "top_p": 0.8, "min_p": 0.1},
    {"temperature": 1.0, "top_p": 0.9, "logprobs": 3},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "prompt_ids": [1, 2], "output_ids": [4]},
    {"logit_bias": {3: 2.0, 4: -100.0}, "min_tokens": 50, "banned_ids": (7,)},
]
"""What rows can ask of sampling, all in one step."""


def opened(new_steps) -> Any:
    steps = new_steps()
    for row, values in enumerate(ROWS):
        steps.open(row, **values).feed(row, [3 + row, 5], to=[row], prompt=(2, [5, -1]) if row == 2 else None)
    return steps


def test_each_step_travels_to_the_device_in_one_copy(runner: ResidentRunner, new_steps) -> None:
    steps = opened(new_steps)
    planned = [steps.step(), steps.decode(*range(len(ROWS))).step(), steps.open(9, like=1).feed(0, [-1], to=[0, 9]).step()]
    for step in planned:
        with watched() as journeys:
            runner.sample(runner.forward(step))
        assert len(journeys.there) == 1, journeys.there
        assert journeys.back, "the hook saw the results come back"


def test_masks_travel_in_one_copy_more(runner: ResidentRunner, new_steps) -> None:
    allowed = {row: torch.ones(VOCAB_SIZE, dtype=torch.bool) for row in (0, 1, 4)}
    with watched() as journeys:
        runner.sample(runner.forward(opened(new_steps).step()), allowed=allowed)
    assert len(journeys.there) == 2, journeys.there


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: x.to("cpu"),
        lambda x: x.long().bincount(minlength=4),
        lambda x: bool(x.any()),
    ],
)
def test_the_hook_knows_a_wait(wait) -> None:
    value = torch.zeros(4, device=META)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), watched():
        wait(value)


def test_the_hook_counts_lists_that_become_tensors() -> None:
    with watched() as journeys:
        torch.tensor([1, 2], device=META)
        torch.zeros(2, device=META)[:] = torch.ones(2)
        torch.ones(2).to(META, non_blocking=True)
    assert len(journeys.there) == 3
