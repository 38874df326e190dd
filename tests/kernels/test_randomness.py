"""The random numbers are SplitMix64's, and belong to seed and position alone."""

import torch

from actorllm_kernels.sampling.randomness import uniform

MASK = 2**64 - 1


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def reference(seed: int, position: int) -> float:
    mixed = mix((mix(seed & MASK) + (position + 1) * 0x9E3779B97F4A7C15) & MASK)
    return (mixed >> 11) * 2.0**-53


def test_equals_exact_integers() -> None:
    pairs = [(seed, position) for seed in (0, 1, -1, 2**63 - 1, -(2**63), 123456789) for position in (0, 1, 4095)]
    seeds, positions = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert uniform(seeds, positions).tolist() == [reference(*pair) for pair in pairs]


def test_is_uniform_over_seeds_and_over_positions() -> None:
    counter = torch.arange(20_000)
    for numbers in (uniform(counter, torch.zeros_like(counter)), uniform(torch.zeros_like(counter), counter)):
        histogram = torch.histc(numbers.float(), bins=20, min=0, max=1)
        chi_square = ((histogram - 1000) ** 2 / 1000).sum().item()
        assert chi_square < 50, "19 degrees of freedom: 50 has a probability below 2e-4"
        lagged = torch.corrcoef(torch.stack((numbers[1:], numbers[:-1])))[0, 1].item()
        assert abs(lagged) < 0.03
