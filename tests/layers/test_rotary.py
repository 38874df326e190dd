"""Rotary angles: each type's formula, the forms that config.json gives them in, and what is refused."""

import math

import pytest
import torch

from actorllm.errors import UnsupportedConfig
from actorllm.layers.rotary import Rotary

DIM = 8


def angles(rotary: Rotary, positions: list[int]) -> torch.Tensor:
    """[T, D/2] angles, from their sines and cosines."""
    tables = rotary.tables(torch.tensor(positions), torch.float32)
    return torch.atan2(tables.sin_T1D, tables.cos_T1D)[:, 0, : DIM // 2]


def frequencies(theta: float = 10000.0) -> torch.Tensor:
    return torch.tensor([theta ** (-2 * index / DIM) for index in range(DIM // 2)])


def read(parameters, context_len=64):
    return Rotary.from_hf(DIM, parameters, context_len=context_len)


def test_default():
    torch.testing.assert_close(angles(read({"rope_theta": 500.0}), [3]), 3 * frequencies(500.0)[None])


def test_linear_slows_every_position_down():
    rotary = read({"rope_type": "linear", "factor": 4.0})
    torch.testing.assert_close(angles(rotary, [8]), 2 * frequencies()[None])


def test_the_old_name_of_the_type():
    assert read({"type": "linear", "factor": 2}) == read({"rope_type": "linear", "factor": 2.0})


def test_dynamic_is_default_within_the_original_context():
    positions = [0, 5, 15]
    rotary = read({"rope_type": "dynamic", "factor": 2.0}, context_len=16)
    assert torch.equal(angles(rotary, positions), angles(read({}), positions))


def test_dynamic_grows_the_base_with_the_position():
    rotary = read({"rope_type": "dynamic", "factor": 2.0}, context_len=16)
    theta = 10000.0 * (2.0 * 40 / 16 - 1.0) ** (DIM / (DIM - 2))
    expected = torch.tensor([math.remainder(39 * float(frequency), 2 * math.pi) for frequency in frequencies(theta)])
    torch.testing.assert_close(angles(rotary, [39])[0], expected, atol=1e-4, rtol=0)


def test_dynamic_does_not_depend_on_what_else_is_in_the_batch():
    rotary = read({"rope_type": "dynamic", "factor": 2.0}, context_len=16)
    torch.testing.assert_close(angles(rotary, [3, 20, 60])[1:2], angles(rotary, [20]))


def test_llama3_keeps_short_waves_and_slows_long_ones():
    rotary = Rotary.from_hf(
        64,
        {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        context_len=131072,
    )  # fmt: skip
    tables = rotary.tables(torch.tensor([1]), torch.float32)
    got = torch.atan2(tables.sin_T1D, tables.cos_T1D)[0, 0, :32]
    plain = 500000.0 ** (-torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(got[0], plain[0])
    torch.testing.assert_close(got[-1], plain[-1] / 8, rtol=1e-4, atol=0)


def test_rotation_keeps_lengths():
    x_THD = torch.randn(5, 2, DIM, generator=torch.Generator().manual_seed(0))
    rotated = read({}).tables(torch.arange(5), torch.float32).apply(x_THD)
    torch.testing.assert_close(rotated.norm(dim=-1), x_THD.norm(dim=-1))
    assert torch.equal(rotated[0], x_THD[0])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "yarn"),
        ({"rope_type": "longrope"}, "longrope"),
        ({"rope_type": 3}, "3"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0.0}, "factor"),
        ({"rope_type": "linear", "factor": "four"}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": -4}, "original_max_position_embeddings"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"mrope_section": [1, 2, 3]}, "mrope_section"),
    ],
)
def test_refuses_by_name(parameters, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(parameters)
