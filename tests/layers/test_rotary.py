"""Rotary angles: each type's formula, the forms that config.json gives them in, and what is refused."""

import logging
import math

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from actorllm.errors import UnsupportedConfig
from actorllm.layers.rotary import Rotary

DIM = 8
HEAD_DIM = 64
CONTEXT_LEN = 4096
LONGROPE = {
    "rope_type": "longrope", "original_max_position_embeddings": 1024,
    "short_factor": [1.0 + 0.02 * index for index in range(32)], "long_factor": [1.5 + 0.5 * index for index in range(32)],
}  # fmt: skip


def angles(rotary: Rotary, positions: list[int]) -> torch.Tensor:
    """[T, D/2] angles, from their sines and cosines."""
    tables = rotary.tables(torch.tensor(positions), torch.float32)
    return torch.atan2(tables.sin_T1R, tables.cos_T1R)[:, 0, : DIM // 2]


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
    torch.testing.assert_close(angles(rotary, positions), angles(read({}), positions), atol=1e-6, rtol=0)


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
    got = torch.atan2(tables.sin_T1R, tables.cos_T1R)[0, 0, :32]
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
        ({"rope_type": "mrope"}, "mrope"),
        ({"rope_type": 3}, "3"),
        ({"rope_type": ["yarn"]}, "yarn"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": -1}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 2}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": "no"}, "truncate"),
        ({"rope_type": "yarn", "factor": 4.0, "short_factor": [1.0] * 4}, "short_factor"),
        ({"rope_type": "longrope", "long_factor": [1.0] * 4}, "short_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 3}, "long_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0, "2", 1.0, 1.0], "long_factor": [1.0] * 4}, "short_factor"),
        ({"rope_type": "longrope", "original_max_position_embeddings": 1}, "original_max_position_embeddings"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0.0}, "factor"),
        ({"rope_type": "linear", "factor": "four"}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": -4}, "original_max_position_embeddings"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"mrope_section": [1, 2, 3]}, "mrope_section"),
    ],
)
def test_refuses_by_name(parameters, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(parameters)


def expected_tables(parameters, positions, *, head_dim=HEAD_DIM, seq_len=None):
    """Cosines and sines [T, R] that transformers' function of the type gives."""
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, max_position_embeddings=CONTEXT_LEN, rope_parameters=dict(parameters)
    )
    frequencies_F, attention_factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), seq_len=seq_len)
    angles_TF = torch.tensor(positions, dtype=torch.float32)[:, None] * frequencies_F
    angles_TR = torch.cat((angles_TF, angles_TF), dim=-1)
    return angles_TR.cos() * attention_factor, angles_TR.sin() * attention_factor


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        YARN,
        YARN | {"rope_theta": 1e6, "truncate": False},
        YARN | {"beta_fast": 16, "beta_slow": 2.5},
        YARN | {"beta_fast": 0, "beta_slow": None},
        YARN | {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0},
        YARN | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0},
        YARN | {"attention_factor": 1.75},
        YARN | {"factor": 1.0},
        YARN | {"partial_rotary_factor": 0.5},
        YARN | {"original_max_position_embeddings": 8},
        LONGROPE,
        LONGROPE | {"factor": 2.0, "rope_theta": 500.0},
        LONGROPE | {"attention_factor": 1.25},
    ],
)  # fmt: skip
def test_equals_transformers(parameters):
    positions = [0, 1, 17, 1500, 4000]
    parameters = {"rope_theta": 10000.0} | parameters
    rotary = Rotary.from_hf(HEAD_DIM, parameters, context_len=CONTEXT_LEN, partial=1.0)
    tables = rotary.tables(torch.tensor(positions), torch.float32)
    wanted = expected_tables(parameters, positions, seq_len=CONTEXT_LEN)
    for got, expected in zip((tables.cos_T1R, tables.sin_T1R), wanted, strict=True):
        torch.testing.assert_close(got[:, 0], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("context", "word"), [(1024, "short"), (1025, "long")])
def test_longrope_is_chosen_by_the_served_context_and_says_so(context, word, caplog):
    positions = [3, 900]
    parameters = {"rope_theta": 10000.0} | LONGROPE
    with caplog.at_level(logging.INFO):
        rotary = Rotary.from_hf(HEAD_DIM, parameters, context_len=CONTEXT_LEN).for_context(context)
    assert f"the {word} factors are used" in caplog.text and str(context) in caplog.text
    cos, sin = expected_tables(parameters, positions, seq_len=context)
    tables = rotary.tables(torch.tensor(positions), torch.float32)
    torch.testing.assert_close(tables.cos_T1R[:, 0], cos, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(tables.sin_T1R[:, 0], sin, atol=1e-4, rtol=1e-5)


def test_other_types_do_not_ask_for_the_served_context(caplog):
    with caplog.at_level(logging.INFO):
        assert read(YARN).for_context(5) == read(YARN)
    assert not caplog.records


@pytest.mark.parametrize(("max_positions", "expected"), [(1024, 4096), (4096, 4096), (8192, 8192)])
def test_yarn_serves_the_stretched_context(max_positions, expected):
    assert read(YARN, context_len=max_positions).context_len(max_positions) == expected


def test_yarn_takes_its_factor_from_the_two_lengths_where_it_is_null():
    assert read(YARN | {"factor": None}, context_len=4096) == read(YARN)


def turned_in_pairs(x_THD, pairs, angles_TF):
    """Each pair as a complex number, turned by its angle."""
    out = x_THD.clone()
    for index, (real, imaginary) in enumerate(pairs):
        turned = torch.complex(x_THD[..., real], x_THD[..., imaginary]) * torch.polar(
            torch.ones(len(x_THD)), angles_TF[:, index]
        ).unsqueeze(1)
        out[..., real], out[..., imaginary] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize("partial", [0.25, 0.5, 1.0])
def test_pairs_are_turned_and_the_rest_of_a_head_is_kept(is_interleaved, partial):
    head_dim, positions = 16, torch.tensor([0, 2, 7])
    x_THD = torch.randn(3, 2, head_dim, generator=torch.Generator().manual_seed(1))
    rotary = Rotary.from_hf(head_dim, {}, context_len=64, partial=partial, is_interleaved=is_interleaved)
    size = int(head_dim * partial)
    half = size // 2
    pairs = [(2 * index, 2 * index + 1) if is_interleaved else (index, index + half) for index in range(half)]
    frequencies_F = torch.tensor([10000.0 ** (-2 * index / size) for index in range(half)])
    expected = turned_in_pairs(x_THD, pairs, positions[:, None] * frequencies_F)
    torch.testing.assert_close(rotary.tables(positions, torch.float32).apply(x_THD), expected)


def test_the_config_decides_the_rotated_share():
    assert Rotary.from_hf(16, {"partial_rotary_factor": 0.25}, context_len=64, partial=0.5).rotary_dim == 4
    with pytest.raises(UnsupportedConfig, match="partial_rotary_factor"):
        Rotary.from_hf(16, {"partial_rotary_factor": 1.5}, context_len=64, partial=0.5)
    for partial in (0.4375, 0.05):
        with pytest.raises(UnsupportedConfig, match="head_dim 16"):
            Rotary.from_hf(16, {}, context_len=64, partial=partial)
    with pytest.raises(UnsupportedConfig, match="dynamic"):
        Rotary.from_hf(16, {"rope_type": "dynamic", "factor": 2.0}, context_len=64, partial=0.125)
