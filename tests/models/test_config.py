"""The consuming reader: nothing in a config.json is overlooked, and every value is checked."""

import pytest
import torch

from actorllm.errors import UnsupportedConfig
from actorllm.models.config import NEUTRAL_KEYS, ConfigReader
from actorllm.models.contract import CacheBuffer, window_groups


def test_finish_names_every_key_that_is_left():
    reader = ConfigReader({"architectures": ["A"], "taken": 1, "trick": 2, "other_trick": [3]})
    reader.take("taken")
    with pytest.raises(UnsupportedConfig, match=r"A for what is not implemented: other_trick = \[3\], trick = 2"):
        reader.finish()


def test_finish_accepts_neutral_keys_and_null():
    reader = ConfigReader(dict.fromkeys(NEUTRAL_KEYS, "anything") | {"architectures": ["A"], "new": None, "pruned_heads": {}})
    reader.neutral("another", "does nothing here")
    reader.finish()


def test_every_neutral_key_says_why():
    assert all(NEUTRAL_KEYS.values())


@pytest.mark.parametrize("value", [0, -1, 10**9, 1e9, 2**40, 1.0, "1", True, [1]])
def test_sizes_are_whole_and_sane(value):
    with pytest.raises(UnsupportedConfig, match=r"hidden_size is .*implausible.*from 1 to 262144"):
        ConfigReader({"hidden_size": value}).size("hidden_size")
    with pytest.raises(UnsupportedConfig, match=r"num_hidden_layers is .*implausible.*from 1 to 4096"):
        ConfigReader({"num_hidden_layers": "x" if value == 1 else value}).layers()


def test_lengths_and_vocabularies_may_be_larger_than_other_sizes():
    config = {"max_position_embeddings": 10_485_760, "sliding_window": 10**6, "vocab_size": 10**6}
    assert [ConfigReader(config).size(key) for key in config] == list(config.values())
    for key in config:
        with pytest.raises(UnsupportedConfig, match=f"{key} is 1000000000, which is implausible"):
            ConfigReader({key: 10**9}).size(key)


def test_sizes_may_have_a_default_but_are_never_guessed():
    assert ConfigReader({"width": None}).size("width", 7) == 7
    assert ConfigReader({}).optional_size("width") is None
    with pytest.raises(UnsupportedConfig, match="no 'width'"):
        ConfigReader({}).size("width")


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "1", True])
def test_numbers_are_finite_and_positive(value):
    with pytest.raises(UnsupportedConfig, match="eps"):
        ConfigReader({"eps": value}).number("eps", 1.0)


@pytest.mark.parametrize("value", [0, 1, "false", []])
def test_flags_are_true_or_false(value):
    with pytest.raises(UnsupportedConfig, match="tied"):
        ConfigReader({"tied": value}).flag("tied")


def test_a_key_may_have_other_names():
    aliases = {"n_embd": "hidden_size", "n_embed": "hidden_size"}
    for config in ({"n_embd": 8}, {"hidden_size": 8}, {"n_embed": 8, "hidden_size": None}, {"n_embd": 8, "hidden_size": 8}):
        reader = ConfigReader(config, aliases=aliases)
        assert reader.size("hidden_size") == 8
        reader.finish()
    with pytest.raises(UnsupportedConfig, match="n_embd = 8 contradicts hidden_size = 9"):
        ConfigReader({"n_embd": 8, "hidden_size": 9}, aliases=aliases)


def test_expect_takes_only_what_is_implemented():
    ConfigReader({"kind": "a"}).expect("kind", ["a", "b"], "nothing else is built")
    ConfigReader({}).expect("kind", ["a"], "nothing else is built")
    with pytest.raises(UnsupportedConfig, match=r"kind = 'c'.*nothing else is built"):
        ConfigReader({"kind": "c"}).expect("kind", ["a"], "nothing else is built")


def test_layer_windows_follow_layer_types_or_the_default():
    kinds = ["sliding_attention", "full_attention"]
    assert ConfigReader({"layer_types": kinds}).layer_windows(9, by_default=[False, False]) == (9, None)
    assert ConfigReader({}).layer_windows(9, by_default=[False, True]) == (None, 9)
    assert ConfigReader({"layer_types": kinds}).layer_windows(None, by_default=[True, True]) == (None, None)


@pytest.mark.parametrize("kinds", [["full_attention"], ["full_attention", "linear_attention"], "full_attention", [[], {}]])
def test_other_layer_types_are_refused(kinds):
    with pytest.raises(UnsupportedConfig, match="layer_types"):
        ConfigReader({"layer_types": kinds}).layer_windows(9, by_default=[True, True])


def test_window_groups_join_layers_with_equal_windows():
    groups, group_of_layer = window_groups((4, None, 4, 8), (CacheBuffer("k", (2, 3)),))
    assert [(group.name, group.layers, group.window) for group in groups] == [
        ("window4", (0, 2), 4),
        ("full", (1,), None),
        ("window8", (3,), 8),
    ]
    assert group_of_layer == (0, 1, 0, 2)
    assert groups[0].bytes_per_token(torch.float32) == 2 * 6 * 4
