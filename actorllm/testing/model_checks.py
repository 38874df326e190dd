"""The conformance kit: what every model plugin must hold, as checks that name what is wrong.

Two lines test a plugin with pytest:

    from actorllm.testing.model_checks import model_checks
    test_model = model_checks(MyForCausalLM, {"architectures": ["MyForCausalLM"], ...})

The config is a tiny config.json; without one the class's own `example_config` is taken. Comparing with transformers happens
where it is installed and knows the `model_type`.

Legend: T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from actorllm.errors import ActorLLMError, UnsupportedConfig
from actorllm.execution.forward import forward
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheGroup, CausalLM
from actorllm.testing.against_transformers import (
    is_only_the_scale,
    load_folder,
    no_reference,
    reference_exists,
    reference_type,
    saved_reference,
    survey_folder,
    variations,
)
from actorllm.testing.check import TOLERANCE, CheckFailed, CheckResult, NotCompared, expect_equal, run_check, shape_text
from actorllm.testing.recording import RecordingWeights
from actorllm.testing.reference import reference_logits
from actorllm.testing.tiny import TinyCache, logits_in_chunks, logits_of, on_thread_ranks
from actorllm.testing.toy_int8 import Int8Weights, OneLayerResident, RoundedWeights
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import WeightSource, load_module

TINY_SIZES: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
INT8_DIVERGENCE = 0.02
"""Of next-token distributions with a cache in int8, in nats: tiny models with large random weights have few values a head."""


Check = Callable[["ModelCase"], str]
"""Raises what is wrong; returns what was looked at, with shapes."""


@dataclass
class ModelCase:
    """A plugin's class and a tiny config.json to try it with."""

    model_class: type[CausalLM]
    config: Mapping[str, Any]
    seed: int = 0

    @cached_property
    def ids(self) -> list[int]:
        """A sequence longer than any window that a tiny config should have."""
        generator = torch.Generator().manual_seed(self.seed)
        length = min(40, int(self.config.get("max_position_embeddings", 40)))
        return torch.randint(self.parsed.vocab_size, (length,), generator=generator).tolist()

    @cached_property
    def parsed(self) -> Any:
        return self.model_class.config_class.from_hf(dict(self.config))

    def build(self, source: WeightSource | None = None, *, shard: Shard | None = None) -> CausalLM:
        """A model with weights."""
        model = self.model_class(self.parsed, shard or Shard())
        load_module(model, source or self.weights())
        return model

    def weights(self) -> RandomWeights:
        """Random weights that are large enough for faults to show."""
        return RandomWeights(self.seed, std=0.2)

    @cached_property
    def has_weights(self) -> bool:
        """Whether the model pulls anything."""
        source = RecordingWeights(self.weights())
        self.build(source)
        return bool(source.pulled)

    @cached_property
    def plain_logits(self) -> Tensor:
        """[T, V] of the sequence in one piece."""
        return logits_in_chunks(self.build(), self.ids)


def tiny_config(model_class: type[CausalLM], architecture: str) -> dict[str, Any]:
    """The plugin's own example of a tiny config.json, or one of the usual keys; with transformers' `model_type` if it has one."""
    config = {"architectures": [architecture], **(model_class.example_config or TINY_SIZES)}
    return {"model_type": model_type, **config} if (model_type := reference_type(architecture)) else config


def check_config_reads(case: ModelCase) -> str:
    """The config is read, and a key nobody knows is refused."""
    for name in ("vocab_size", "context_len", "num_layers"):
        if not isinstance(getattr(case.parsed, name, None), int):
            raise CheckFailed(f"the config has no whole number {name!r}, which the engine reads")
    try:
        case.model_class.config_class.from_hf({**case.config, "a_key_that_changes_everything": 1})
    except UnsupportedConfig:
        return f"{len(case.config)} keys: {case.parsed.num_layers} layers, vocabulary {case.parsed.vocab_size}"
    raise CheckFailed("from_hf takes an unknown key without a word: call ConfigReader.finish()")


def check_builds_on_meta(case: ModelCase) -> str:
    """A model can be built without memory for its weights."""
    with torch.device("meta"):
        model = case.model_class(case.parsed, Shard())
    real = [name for name, tensor in model.named_parameters() if tensor.device.type != "meta"]
    if real:
        raise CheckFailed(f"these parameters take memory before weights are loaded: {', '.join(real[:5])}")
    return f"{sum(1 for _ in model.modules())} modules"


def check_claims_once(case: ModelCase) -> str:
    """Every row of every tensor is pulled once."""
    source = RecordingWeights(case.weights())
    case.build(source)
    twice, in_part = [], []
    for name, pulled in source.pulled.items():
        ranges = sorted(pulled)
        ends = [0, *(end for _, end in ranges)]
        starts = [*(start for start, _ in ranges), source.num_rows[name]]
        twice += [name] * any(start < end for start, end in zip(starts, ends, strict=True))
        in_part += [name] * any(start > end for start, end in zip(starts, ends, strict=True))
    if twice:
        raise CheckFailed(f"tensors claimed more than once: {', '.join(twice[:5])}")
    if in_part:
        raise CheckFailed(f"tensors of which some rows are never read: {', '.join(in_part[:5])}")
    return f"{len(source.pulled)} tensors, {sum(math.prod(shape) for shape in source.shapes.values())} values"


def check_claims_all(case: ModelCase) -> str:
    """Every tensor that transformers saves for this config has its place and its shape, and none is missing."""
    if not reference_exists(case.config):
        raise NotCompared(no_reference(case.config))
    with saved_reference(case.config, seed=case.seed) as (_, folder):
        return survey_folder(case.model_class, folder)


def check_shapes(case: ModelCase) -> str:
    """Logits are [T, V] in float32, and a layer's keys live in one cache group."""
    wanted, got = (len(case.ids), case.parsed.vocab_size), tuple(case.plain_logits.shape)
    if got != wanted:
        raise CheckFailed(
            f"the logits are {list(got)}, but {wanted[0]} tokens of a vocabulary of {wanted[1]} make {list(wanted)}"
        )
    if case.plain_logits.dtype != torch.float32:
        raise CheckFailed(f"the logits are {case.plain_logits.dtype}, but must be float32: end head() with .float()")
    groups = case.build().cache_groups
    cached = sorted(layer for group in groups for layer in group.layers)
    if len(set(cached)) < len(cached) or not set(cached) <= set(range(case.parsed.num_layers)):
        raise CheckFailed(
            f"cache groups name layers {cached}, but the model has 0 to {case.parsed.num_layers - 1}, each at most once"
        )
    return f"{shape_text(case.plain_logits)}; cache {', '.join(map(_group_text, groups)) or 'none'}"


def check_repeatable(case: ModelCase) -> str:
    """A model keeps no state between calls: the cache holds everything."""
    model = case.build()
    first = logits_in_chunks(model, case.ids)
    logits_in_chunks(model, case.ids[::-1], sizes=[5, 3])
    return expect_equal(
        logits_in_chunks(model, case.ids), first, "the same input gives other logits the second time: state is kept"
    )


def check_chunking(case: ModelCase) -> str:
    """Token by token, or in any chunks: the same logits as in one piece."""
    model = case.build()
    cuts = ([1] * len(case.ids), [7, 1, 13], [len(case.ids) - 1])
    for sizes in cuts:
        got = logits_in_chunks(model, case.ids, sizes=sizes)
        expect_equal(got, case.plain_logits, f"fed in chunks of {sizes[:4]} the logits differ from one piece")
    return f"{shape_text(case.plain_logits)} in {len(cuts)} cuts"


def check_batch(case: ModelCase) -> str:
    """Alone or beside other sequences: the same logits."""
    model = case.build()
    others = [case.ids[::-1], case.ids[5:11]]
    cache = TinyCache(model.cache_groups, num_rows=3, context=len(case.ids))
    logits_of(model, cache, [(0, others[0][:9])])
    parts = logits_of(model, cache, [(0, others[0][9:12]), (1, case.ids[:-1]), (2, others[1])])
    start = 3
    got = parts[start : start + len(case.ids) - 1]
    return expect_equal(got, case.plain_logits[:-1], "beside other sequences the logits differ: rows leak into each other")


def check_slots(case: ModelCase) -> str:
    """Whichever slots a sequence gets: the same logits."""
    model = case.build()
    for seed in (1, 2):
        got = logits_in_chunks(model, case.ids, sizes=[11], seed=seed)
        expect_equal(got, case.plain_logits, "with other slots the logits differ: the cache is not read through the slot table")
    return f"{shape_text(case.plain_logits)} with 2 shuffles"


def check_two_ranks(case: ModelCase) -> str:
    """Split over two thread ranks: the same logits on each."""
    results = on_thread_ranks(2, lambda shard: logits_in_chunks(case.build(shard=shard), case.ids, sizes=[9]))
    for rank, got in enumerate(results):
        expect_equal(got, case.plain_logits, f"split over two ranks the logits of rank {rank} differ: a shard is wrong")
    return f"{shape_text(case.plain_logits)} on each rank"


def check_two_models(case: ModelCase) -> str:
    """Two models in one process do not disturb each other."""
    first, second = case.build(), case.build(RandomWeights(case.seed + 1, std=0.2))
    other = logits_in_chunks(second, case.ids)
    expect_equal(logits_in_chunks(first, case.ids), case.plain_logits, "beside another model the logits differ")
    if case.has_weights and torch.allclose(other, case.plain_logits):
        raise CheckFailed("two models with different weights give equal logits: they share something")
    return shape_text(other)


def check_one_layer_resident(case: ModelCase) -> str:
    """With one layer's weights in memory at a time: the same logits."""
    model = case.model_class(case.parsed, Shard())
    resident = OneLayerResident(model, case.weights())
    cache = TinyCache(model.cache_groups, num_rows=1, context=len(case.ids))
    with torch.inference_mode():
        got = model.head(model.norm(forward(model, cache.batch([(0, case.ids)]), layer=resident.layer)))
    return expect_equal(got, case.plain_logits, "with layers loaded one at a time the logits differ")


def check_transformers(case: ModelCase) -> str:
    """Logits equal those of transformers, with the given config and with each setting that it varies."""
    if not reference_exists(case.config):
        raise NotCompared(no_reference(case.config))
    faults = []
    settings = list(variations(case.config))
    for name, config in settings:
        try:
            _expect_reference(case, config)
        except (CheckFailed, ActorLLMError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise CheckFailed("; ".join(faults))
    return f"{shape_text(case.plain_logits)} for {len(settings)} settings"


def _expect_reference(case: ModelCase, config: Mapping[str, Any]) -> None:
    """The logits are transformers' with weights that it saved."""
    with saved_reference(config, seed=case.seed) as (reference, folder):
        wanted = reference_logits(reference, case.ids)
        try:
            expect_equal(logits_in_chunks(load_folder(case.model_class, folder), case.ids), wanted, "the logits differ from transformers")
        except CheckFailed as error:
            if is_only_the_scale(case.model_class, folder, ids=case.ids, wanted_TV=wanted):
                raise CheckFailed(f"{error}; attention's scale is wrong: with 1 / sqrt(head_dim) they are equal") from error
            raise


def check_int8_source(case: ModelCase) -> str:
    """With linears that are int8 codes the model computes what the rounded values give."""
    int8 = logits_in_chunks(case.build(Int8Weights(case.weights())), case.ids)
    rounded = logits_in_chunks(case.build(RoundedWeights(case.weights())), case.ids)
    return expect_equal(int8, rounded, "with int8 linears the logits differ from the same rounded values")


def check_int8_cache(case: ModelCase) -> str:
    """With keys and values in int8 nearly the same distribution, in any chunks and on two ranks."""
    model = case.build()
    whole = logits_in_chunks(model, case.ids, kv_dtype=torch.int8)
    chunks = logits_in_chunks(model, case.ids, sizes=[7, 1, 13], kv_dtype=torch.int8)
    ranks = on_thread_ranks(2, lambda shard: logits_in_chunks(case.build(shard=shard), case.ids, kv_dtype=torch.int8))
    for got, wanted, limit, fault in (
        (whole, case.plain_logits, INT8_DIVERGENCE, "with an int8 cache the distribution differs: mark a buffer that must be exact"),
        (chunks, whole, TOLERANCE, "with an int8 cache chunks change the distribution"),
        *((rank, whole, TOLERANCE, "with an int8 cache two ranks differ from one") for rank in ranks),
    ):
        if not (divergence := _divergence(got, wanted)) <= limit:
            raise CheckFailed(f"{fault} (by {divergence:.3g} nats, allowed are {limit:.3g})")
    return f"{shape_text(whole)}, {_divergence(whole, case.plain_logits):.2g} nats"


def _divergence(got: Tensor, wanted: Tensor) -> float:
    """Kullback-Leibler, from `wanted`'s distribution to `got`'s, in nats on average."""
    got, wanted = got.log_softmax(dim=-1), wanted.log_softmax(dim=-1)
    return float((wanted.exp() * (wanted - got)).sum(dim=-1).mean())


CHECKS: Mapping[str, Check] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_config_reads,
        check_builds_on_meta,
        check_claims_once,
        check_claims_all,
        check_shapes,
        check_repeatable,
        check_chunking,
        check_batch,
        check_slots,
        check_two_ranks,
        check_two_models,
        check_one_layer_resident,
        check_int8_source,
        check_int8_cache,
        check_transformers,
    )
}


def run_checks(case: ModelCase) -> list[CheckResult]:
    """Run every check; a fault of one does not stop the others."""
    return [run_check(check, case) for check in CHECKS.values()]


def model_checks(model_class: type[CausalLM], config: Mapping[str, Any] | None = None) -> Callable[[str], None]:
    """A pytest test function, parametrized by the names of the checks. Without `config`, the class's own example.

    What transformers cannot be compared with is skipped, with the reason.
    """
    import pytest  # only authors' tests need it

    case = ModelCase(model_class, tiny_config(model_class, model_class.__name__) if config is None else config)

    @pytest.mark.parametrize("check", list(CHECKS))
    def test_model(check: str) -> None:
        try:
            CHECKS[check](case)
        except NotCompared as error:
            pytest.skip(str(error))

    return test_model


def _group_text(group: CacheGroup) -> str:
    window = f" window {group.window}" if group.window else ""
    buffers = " ".join(f"{buffer.name}{list(buffer.shape)}" for buffer in group.buffers)
    return f"{group.name}{window}: {len(group.layers)} x {buffers}"
