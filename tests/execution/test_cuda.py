"""The same code on a GPU: results as on the CPU, and steps launched on ids that nobody has read yet."""

import asyncio

import pytest
import torch

from actorllm.execution.device_thread import DeviceThread
from actorllm.execution.devices import Devices
from actorllm.messages import StepDone
from actorllm_kernels.sampling.filters import FilterParameters, allowed
from actorllm_kernels.sampling.randomness import uniform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_random_numbers_and_allowed_tokens_are_the_cpus() -> None:
    seeds, positions = torch.randint(-(2**62), 2**62, (1000,)), torch.arange(1000)
    assert torch.equal(uniform(seeds.cuda(), positions.cuda()).cpu(), uniform(seeds, positions))
    scores = torch.randn(3, 5000) * 3
    scores -= scores.amax(1, keepdim=True)
    values = (torch.tensor([7, 5000, 5000]), torch.tensor([1.0, 0.9, 0.5]).double(), torch.tensor([0.0, 0.01, 0.0]))
    on_cpu = allowed(scores, FilterParameters(*values, max_k=7, has_nucleus=True))
    on_gpu = allowed(scores.cuda(), FilterParameters(*(v.cuda() for v in values), max_k=7, has_nucleus=True))
    assert torch.equal(on_cpu, on_gpu.cpu())


async def test_two_steps_are_under_way_at_once(new_echo, new_steps) -> None:
    device = torch.device("cuda", 0)
    thread = DeviceThread("cuda", device)
    runner = await thread.submit(lambda: new_echo(device=device))
    devices = Devices([thread], [runner])
    steps, loop = new_steps(), asyncio.get_running_loop()
    steps.open(0, logprobs=1).open(1, temperature=1.0, top_p=0.9, presence_penalty=0.1).open(2, seed=1, temperature=1.0)
    planned = [steps.feed(0, [3], to=[0]).feed(1, [9, 4], to=[1]).feed(2, [7], to=[2], prompt=(1, [-1])).step()]
    planned += [steps.decode(0, 1, 2).step() for _ in range(10)]
    results: list[asyncio.Future[StepDone]] = []
    for step in planned:
        future = loop.create_future()
        results.append(future)
        devices.run(step, lambda done, error, f=future: f.set_exception(error) if error else f.set_result(done))
    done = [await result for result in results]
    assert [list(torch.frombuffer(bytearray(d.sampled), dtype=torch.int32)) for d in done] == [
        [4 + i, 5 + i, 8 + i] for i in range(11)
    ]
    assert all(d.logprobs[0] is not None for d in done)
    assert await devices.close()
