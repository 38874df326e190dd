"""Configurations of kernels: the nearest is taken, what was measured goes first, and a broken file stops nothing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actorllm_kernels import configurations
from actorllm_kernels.candidates import CHOICES, Choices, candidates
from actorllm_kernels.configurations import (
    SHARED_KIB,
    SHIPPED,
    Configuration,
    Key,
    configuration,
    nearest,
    read,
    store,
    text_of,
    user_file,
)

ONE = Configuration((("m", 16), ("n", 64)), 4, 3)
OTHER = Configuration((("m", 32), ("n", 32)), 8, 2)


def key(head_dim: int = 128, group: int = 8, gpu: str = "sm_90", triton: str = "3.9.0", kernel: str = "attend_decode") -> Key:
    return Key(kernel, (("bytes", 2), ("group", group), ("head_dim", head_dim)), gpu, triton)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configuration.cache_clear()
    yield tmp_path
    configuration.cache_clear()


def test_the_shipped_file_has_every_size_for_both_gpus():
    known = read(SHIPPED)
    for gpu in ("sm_80", "sm_90"):
        for kernel in ("attend_decode", "attend_prefill"):
            sizes = {
                (dict(each.shape)["bytes"], dict(each.shape)["head_dim"])
                for each in known
                if each.gpu == gpu and each.kernel == kernel
            }
            assert sizes >= {(size, head_dim) for size in (1, 2, 4) for head_dim in (64, 128, 256, 576)}


def test_an_unknown_shape_takes_the_nearest():
    assert configuration(key(120, group=5)) == read(SHIPPED)[key()]
    assert configuration(key(gpu="sm_120")) in read(SHIPPED).values()


@pytest.mark.parametrize(("head_dim", "padded"), [(48, 64), (65, 128), (72, 128), (112, 128), (144, 256), (192, 256), (512, 512)])
def test_a_head_takes_the_configuration_of_what_it_is_padded_to(head_dim, padded):
    assert nearest(key(head_dim), [key(size) for size in (32, 64, 128, 256, 512, 576)]) == key(padded)
    if head_dim < padded:
        assert nearest(key(head_dim), [key(padded), key(head_dim + 1)]) == key(head_dim + 1), "nearer yet: padded alike"


def test_what_was_measured_goes_first():
    store(key(), ONE)
    assert configuration(key()) == ONE
    assert configuration(key(triton="3.6.0")) == ONE
    store(key(), OTHER)
    assert configuration(key()) == OTHER
    assert len(json.loads(user_file().read_text())) == 1


def test_another_gpu_is_further_than_any_shape():
    store(key(gpu="sm_75"), ONE)
    assert configuration(key()) != ONE
    store(key(64, group=1, kernel="attend_decode", gpu="sm_120"), OTHER)
    assert configuration(key(gpu="sm_120")) == OTHER


def test_what_was_measured_on_one_gpu_goes_before_what_was_on_another_of_its_capability():
    mine, other = (replace(key(), model=f"NVIDIA {name}") for name in ("H200", "H100"))
    store(other, ONE)
    assert configuration(mine) == ONE, "the nearest is another's of that capability"
    store(mine, OTHER)
    assert (configuration(mine), configuration(other)) == (OTHER, ONE)
    assert {each.model for each in read(user_file())} == {"NVIDIA H200", "NVIDIA H100"}
    assert configuration(replace(mine, triton="3.99.0")) == OTHER
    assert configuration(replace(mine, shape=key(64).shape)) == read(SHIPPED)[key(64)]


def test_keys_name_the_gpu(monkeypatch):
    device = pytest.importorskip("actorllm_kernels.device", exc_type=ImportError, reason="needs Triton")
    monkeypatch.setattr(device, "gpu", lambda _: "sm_90")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")
    found = device.key_of("gated", {"bytes": 2}, torch.device("cuda", 97))
    assert (found.gpu, found.model, found.shape) == ("sm_90", "NVIDIA H200", (("bytes", 2),))


def test_registers_and_long_heads_are_tried_in_ways_of_their_own():
    found = [*candidates(key())]
    assert {each.max_registers for each in found} == {None, 168, 255}
    long = [*candidates(key(576, group=128))][1:]
    assert long and all(each.block("m") <= 32 for each in long)


def test_what_was_measured_with_another_triton_goes_before_what_is_shipped():
    newer = key(triton="3.99.0")
    store(key(triton="3.8.0"), ONE)
    assert configuration(key()) == configuration(newer) == ONE, "the shipped ones are for 3.9"
    store(newer, OTHER)
    assert (configuration(newer), configuration(key(triton="3.8.0"))) == (OTHER, ONE)
    assert configuration(key(64, triton="3.8.0")) == read(SHIPPED)[key(64)], "another size is further than what is shipped"


@pytest.mark.parametrize("gpu", [*SHARED_KIB, "sm_150"])
def test_nothing_is_cut_as_for_a_gpu_with_more_shared_memory(gpu):
    known, limit = read(SHIPPED), SHARED_KIB.get(gpu, 99)
    for each in known:
        found = nearest(Key(each.kernel, each.shape, gpu, each.triton), known)
        assert SHARED_KIB[found.gpu] == max(SHARED_KIB[other.gpu] for other in known if SHARED_KIB[other.gpu] <= limit)


def test_the_shipped_file_is_sorted():
    assert SHIPPED.read_text() == text_of(read(SHIPPED))


def test_tuning_tries_what_there_is_first():
    for each, chosen in read(SHIPPED).items():
        found = [*candidates(each)]
        assert found[0] == chosen and len({*found}) == len(found) > 3
        assert {name for name, _ in found[-1].blocks} == {name for name, _ in chosen.blocks}
    assert {each.kernel for each in read(SHIPPED)} == CHOICES.keys()


def test_a_kernel_that_nobody_knows_is_an_error():
    with pytest.raises(KeyError, match="no_such_kernel"):
        configuration(key(kernel="no_such_kernel"))


@pytest.mark.parametrize("text", ["", "[{}]", "{", '[{"kernel": 1}]', "7", "{}", "[null]"])
def test_a_broken_file_is_left_out_with_a_warning(text, caplog):
    user_file().write_text(text)
    assert configuration(key()) == read(SHIPPED)[key()]
    assert "is not read" in caplog.text
    store(key(), ONE)
    assert configuration(key()) == ONE


def test_a_file_that_cannot_be_looked_for_is_left_out_with_a_warning(caplog):
    """As in a home of another user; where there is no file, there is nothing to say."""
    assert read(user_file()) == {} and not caplog.text
    assert read(Path("n" * 300)) == {} and "is not read" in caplog.text


@pytest.mark.parametrize("change", [
    {"shape": {"bytes": 2, "group": 0, "head_dim": 128}}, {"shape": {"bytes": 2, "group": -8, "head_dim": 128}},
    {"blocks": {"m": "64", "n": 64}}, {"blocks": {"m": None, "n": 64}}, {"blocks": {"m": 64}}, {"blocks": {"m": 64, "n": 64, "k": 64}},
    {"blocks": {"m": 64, "n": 64.0}}, {"blocks": {"m": 64, "n": 48}}, {"num_warps": 0}, {"num_warps": 3}, {"num_stages": None},
    {"max_registers": -1}, {"kernel": "no_such_kernel"}, {"gpu": None}, {"blocks": [64, 64]},
])  # fmt: skip
def test_an_entry_that_no_kernel_can_be_cut_by_is_left_out_alone(change, caplog):
    store(key(), ONE)
    store(key(64), OTHER)
    right, other = json.loads(user_file().read_text())
    user_file().write_text(json.dumps([{**other, **change}, right, {**right, **change}]))
    configuration.cache_clear()
    assert read(user_file()) == {key(64): OTHER}
    assert caplog.text.count(f"{user_file()}: an entry is not read") == 2
    assert configuration(key()) == read(SHIPPED)[key()]


def test_two_processes_store_what_both_measured():
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from actorllm_kernels.configurations import Configuration, Key, store, user_file\n"
        "chosen, me, other = Configuration((('n', 64),), 4, 1), *(user_file().parent / name for name in sys.argv[1:])\n"
        "me.parent.mkdir(parents=True, exist_ok=True)\n"
        "me.touch()\n"
        "while not other.exists(): time.sleep(0.001)\n"
        "for size in range(1, 41): store(Key('gated', (('bytes', size),), 'sm_90', '3.9.0', me.name), chosen)\n"
    )
    names = ("one", "two"), ("two", "one")
    running = [subprocess.Popen([sys.executable, "-c", code, *each], stderr=subprocess.PIPE, text=True) for each in names]
    assert [process.communicate()[1] for process in running] == ["", ""]
    assert {(each.model, dict(each.shape)["bytes"]) for each in read(user_file())} == {
        (name, size) for name in ("one", "two") for size in range(1, 41)
    }
    assert {path.name for path in user_file().parent.iterdir()} == {"one", "two", "configurations.json", "configurations.lock"}


def test_tuning_keeps_the_fastest_that_runs(monkeypatch):
    tuning = pytest.importorskip("actorllm_kernels.tuning", exc_type=ImportError, reason="needs Triton")
    taken = {16: 3.0, 32: 1.0, 64: 2.0, 256: 0.1}

    class Attempt:
        """Wrong in tiles of 256; until it has run, too."""

        def __init__(self, candidate):
            if candidate.block("n") == 128:
                raise RuntimeError("out of shared memory")
            self.candidate, self.launches, self.has_run = candidate, [self], False

        def run(self):
            self.has_run = True

        def is_right(self):
            return self.has_run and self.candidate.block("n") != 256

    def measure(found):
        return taken[found[0].candidate.block("n")] / found[0].candidate.num_warps

    candidates = list(Choices((4, 8), (2,), {"m": (16,), "n": (16, 32, 64, 128, 256)}))
    assert len(candidates) == 10
    best = tuning.tune(key(), candidates, Attempt, measure=measure)
    assert best == Configuration((("m", 16), ("n", 32)), 8, 2)
    assert configuration(key()) == best
    assert tuning.tune(key(64), candidates[3:5], Attempt, measure=lambda _: 1.0) is None
    assert configurations.read(user_file()).keys() == {key()}
