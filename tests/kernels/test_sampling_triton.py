"""The Triton kernels of sampling against their reference: interpreted, or on the GPU where there is one.

`KERNEL_CASES` is how many random batches are compared (4 by default, 40 at most), and makes the draws that are counted more.
"""

import math
import os
import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.sampling import Adjustments, Needs, Rows, Seen, reference
from actorllm_kernels.sampling.filters import FilterParameters, allowed
from actorllm_kernels.sampling.parameters import MIN_P, TEMPERATURE, TOP_K, TOP_P

triton = pytest.importorskip("actorllm_kernels.sampling.triton", exc_type=ImportError, reason="needs Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_CASES = min(int(os.environ.get("KERNEL_CASES", "4")), 40)
MANY_DRAWS = 200_000
NUM_DRAWS = MANY_DRAWS if DEVICE.type == "cuda" else 1024 if "KERNEL_CASES" in os.environ else 120
"""Of the kernels: the interpreter takes some 20 ms for each."""
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "presence": 0.0, "frequency": 0.0}


def parameters(vocab_size: int, *asked: dict[str, float], seed: int = 0, copies: int = 1) -> Rows:
    """Rows that ask for what is given, all so many times, with seeds of their own."""
    table = [[({**OFF, **row}[name]) for name in OFF] for row in asked]
    for row in table:
        row[1] = min(row[1] or vocab_size, vocab_size)
    seeds = places(copies * len(table)).add(1).mul((seed + 1) * 1000003).sub(2**40)
    return Rows(seeds, torch.tensor(table, dtype=torch.float64, device=DEVICE).view(len(table), len(OFF)).repeat(copies, 1))


def cut(part: int, lanes: int) -> Configuration:
    return Configuration((("lanes", lanes), ("part", part)), 4, 1)


def places(count: int) -> torch.Tensor:
    return torch.arange(count, device=DEVICE)


def drawn(
    logits: torch.Tensor, rows: Rows, *, chosen: Configuration | None = None, position: int = 0, needs: Needs | None = None
):
    """What the kernels draw for each row, and the tokens that they keep of random rows."""
    num_samples, vocab_size = logits.shape
    chosen = chosen or cut(64, 32)
    memory = triton.workspace(num_samples, vocab_size, device=DEVICE, chosen=chosen)
    ids, where = torch.full((num_samples,), -7, device=DEVICE), places(num_samples)
    options = {"rows": rows, "needs": needs or Needs(), "ids_S": ids, "memory": memory, "chosen": chosen}
    for launch in triton.launches(logits, where, where + position, **options):
        launch.run()
    edge, num_ties = memory.edges[1].unsqueeze(-1).unbind(1)
    temperature = rows.parameters_RP[:, TEMPERATURE, None].float()
    bits = ((logits.amax(1, keepdim=True) - logits) / temperature).abs().view(torch.int32)
    return ids, (bits < edge) | ((bits == edge) & ((bits == edge).cumsum(1) <= num_ties))


def check(logits: torch.Tensor, rows: Rows, *, chosen: Configuration | None = None) -> None:
    """Tokens and kept sets are those of the reference."""
    ids, kept = drawn(logits, rows, chosen=chosen)
    where = places(len(logits))
    assert torch.equal(ids, reference.draw(logits, where, where, rows=rows, needs=Needs()))
    is_random = (rows.parameters_RP[:, TEMPERATURE] > 0) & logits.amax(1).isfinite()
    table = rows.parameters_RP[is_random]
    scores = (logits - logits.amax(1, keepdim=True))[is_random] / table[:, TEMPERATURE, None].float()
    vocab_size = logits.shape[1]
    filters = FilterParameters(table[:, TOP_K].long(), table[:, TOP_P], table[:, MIN_P].float(), vocab_size, True)
    is_possible = scores > -25  # what is less likely than 1e-11 is never drawn
    assert torch.equal(kept[is_random] & is_possible, allowed(scores, filters) & is_possible)


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_equals_the_reference(seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    vocab_size = rng.choice((1, 7, 50, 129, 300))
    asked = [
        {
            "temperature": rng.choice((0.0, 0.3, 1.0, 1.7)),
            "top_k": rng.choice((0, 1, 2, 5, 40, vocab_size, 10 * vocab_size)),
            "top_p": rng.choice((1.0, 0.999, 0.9, 0.5, 0.01)),
            "min_p": rng.choice((0.0, 0.0, 0.001, 0.1, 1.0)),
        }
        for _ in range(3)
    ]
    logits = torch.randn(3, vocab_size, generator=generator) * rng.choice((0.1, 2.0, 6.0))
    if seed % 2:  # many ties
        logits = logits.round()
    if seed % 3 == 0:
        logits[:, torch.rand(vocab_size, generator=generator) < 0.3] = -torch.inf
    check(logits.to(DEVICE), parameters(vocab_size, *asked, seed=seed), chosen=cut(*rng.choice(((64, 32), (64, 64), (512, 512)))))


def test_zeros_of_both_signs_are_ties():
    signs = torch.randn(8, 129, generator=torch.Generator().manual_seed(1)).sign()
    asked = [{"top_k": top_k, "top_p": top_p} for top_k in (0, 1, 40, 128) for top_p in (1.0, 0.3)]
    check((signs * 0.0).to(DEVICE), parameters(129, *asked))


def test_an_odd_large_vocabulary():
    logits = torch.randn(2, 32_003, generator=torch.Generator().manual_seed(1)).mul(2).to(DEVICE)
    rows = parameters(32_003, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.8, "temperature": 0.7})
    check(logits, rows, chosen=cut(16384, 16384))


@pytest.mark.parametrize("asked", [{"top_k": 3}, {"top_p": 0.55}, {"top_k": 6, "top_p": 0.5}, {"min_p": 1.0}])
def test_of_equal_tokens_the_first_stay(asked):
    check(torch.zeros(1, 10, device=DEVICE), parameters(10, asked))
    logits = torch.zeros(1, 40, device=DEVICE)
    logits[0, 20] = 1
    check(logits, parameters(40, asked), chosen=cut(16, 16))


def test_one_token_is_left():
    logits = torch.full((4, 70), -torch.inf, device=DEVICE)
    logits[:, 66] = -1e30
    rows = parameters(70, {}, {"top_k": 5}, {"top_p": 0.3}, {"temperature": 0})
    assert drawn(logits, rows)[0].tolist() == [66] * 4
    check(logits, rows)


@pytest.mark.parametrize("asked", [{"top_p": 0.0}, {"top_p": 1e-300}, {"top_p": 0.0, "top_k": 3}])
def test_the_best_token_is_always_kept(asked):
    check(torch.randn(3, 130, generator=torch.Generator().manual_seed(7)).to(DEVICE), parameters(130, asked, copies=3))


def test_a_token_is_one_that_there_is():
    rows = parameters(130, {}, {})
    rows.parameters_RP[:, TOP_K] = 0
    assert drawn(torch.randn(2, 130, generator=torch.Generator().manual_seed(8)).to(DEVICE), rows)[0].max() < 130


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_gives_no_token(wrong):
    logits = torch.randn(4, 70, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    logits[0, 69] = logits[2, 3] = wrong
    logits[3] = -torch.inf
    rows = parameters(70, {"temperature": 0}, {"top_p": 0.9}, {"top_k": 3}, {})
    ids, _ = drawn(logits, rows)
    assert ids[[0, 2, 3]].tolist() == [-1] * 3
    assert torch.equal(ids, reference.draw(logits, places(4), places(4), rows=rows, needs=Needs()))


def test_the_first_of_equal_best_tokens_is_greedy():
    logits = torch.zeros(2, 200, device=DEVICE)
    logits[0, [70, 131, 190]] = logits[1, 199] = 5
    greedy = parameters(200, {"temperature": 0}, {"temperature": 1e-6})
    assert drawn(logits, greedy)[0].tolist() == [70, 199]
    assert drawn(logits, greedy, needs=Needs(is_random=False))[0].tolist() == [70, 199]


def test_logits_with_gaps_and_rows_in_any_order():
    wide = torch.randn(3, 2 * 90, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    rows = parameters(90, {}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"temperature": 0})
    where, positions = torch.tensor([4, 0, 3], device=DEVICE), torch.tensor([9, 0, 100], device=DEVICE)
    for logits in (wide[:, ::2], wide[:, :90], wide.t()[:90, :3].t()):
        got = triton.draw(logits, where, positions, rows=rows, needs=Needs())
        assert torch.equal(got, reference.draw(logits, where, positions, rows=rows, needs=Needs()))


def test_no_samples():
    nothing = torch.empty(0, dtype=torch.int64, device=DEVICE)
    for operator in (triton, reference):
        got = operator.draw(torch.empty(0, 9, device=DEVICE), nothing, nothing, rows=parameters(9, {}), needs=Needs())
        assert got.shape == (0,)


def test_launches_that_were_made_before_serve_every_request():
    """All that changes from step to step is read on the device, so a captured graph stays right."""
    logits, rows = torch.zeros(2, 50, device=DEVICE), parameters(50, {}, {})
    where, positions, ids = (
        places(2),
        torch.zeros(2, dtype=torch.int64, device=DEVICE),
        torch.zeros(2, dtype=torch.int64, device=DEVICE),
    )
    captured = triton.launches(logits, where, positions, rows=rows, needs=Needs(), ids_S=ids, chosen=cut(64, 64))
    for step, asked in enumerate((({"top_k": 2}, {"temperature": 0}), ({"top_p": 0.4}, {"min_p": 0.2}))):
        logits.copy_(torch.randn(2, 50, generator=torch.Generator().manual_seed(step)))
        rows.parameters_RP.copy_(parameters(50, *asked).parameters_RP)
        positions.fill_(step)
        for launch in captured:
            launch.run()
        assert torch.equal(ids, reference.draw(logits, where, positions, rows=rows, needs=Needs()))


LOGITS = torch.tensor([1.0, -0.5, 0.3, 0.9, -2.0, 0.1, -6.0, 0.3, -0.4, 0.8])
COUNTS = torch.tensor([3, 0, 0, 1, 0, 0, 0, 0, 2, 0], dtype=torch.int32)
"""How often a row's output has had each token; its prompt had the last two."""
BIAS = {2: 1.0, 3: -0.5, 9: 0.7}
BANNED = 0
PENALIZED = {"repetition": 1.3, "presence": 0.4, "frequency": 0.2}
ASKED = {
    "temperature": {"temperature": 0.8},
    "min-p": {"temperature": 0.8, "min_p": 0.15},
    "top-k": {"temperature": 1.2, "top_k": 4},
    "top-p": {"temperature": 0.9, "top_p": 0.7},
    "top-k and top-p": {"temperature": 0.9, "top_k": 6, "top_p": 0.8},
    "top-k, top-p and min-p": {"temperature": 1.3, "top_k": 7, "top_p": 0.95, "min_p": 0.3},
    "penalties": {"temperature": 1.0, **PENALIZED},
    "penalties, bias and a ban": {"temperature": 0.8, "top_k": 6, "top_p": 0.9, **PENALIZED, "changed": True},
}


def distribution(temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, *, changed: bool = False, **penalties: float):
    """Of LOGITS, token by token, as the parameters are defined."""
    logits = {token: logit for token, logit in enumerate(LOGITS.tolist())}
    for token, count in enumerate(COUNTS.tolist()) if penalties else ():
        if count or token >= 8:
            logits[token] *= 1 / penalties["repetition"] if logits[token] > 0 else penalties["repetition"]
        logits[token] -= count * penalties["frequency"] + (count > 0) * penalties["presence"]
    if changed:
        logits = {token: logit + BIAS.get(token, 0) for token, logit in logits.items() if token != BANNED}
    weights = {token: math.exp(logit / temperature) for token, logit in logits.items()}
    ranked = sorted(weights, key=lambda token: -weights[token])[: top_k or None]
    kept, left = [], top_p * sum(weights[token] for token in ranked)
    for token in ranked:
        if left > 0:
            kept.append(token)
        left -= weights[token]
    kept = [token for token in kept if weights[token] >= min_p * weights[ranked[0]]]
    return torch.tensor([weights[token] if token in kept else 0.0 for token in range(len(LOGITS))], dtype=torch.float64)


def changed_logits(operator: ModuleType, row: int, rows: Rows, *, changed: bool) -> torch.Tensor:
    """[1, V]: LOGITS after the penalties that one of the rows asks for, and where they are `changed` BIAS and the ban."""
    logits, where, num_rows = LOGITS.clone().unsqueeze(0).to(DEVICE), torch.tensor([row], device=DEVICE), len(rows.seeds_R)
    seen = Seen(COUNTS.repeat(num_rows, 1).to(DEVICE), (places(len(LOGITS)) >= 8).repeat(num_rows, 1))
    operator.penalize(logits, where, seen, rows=rows)
    if changed:
        ids = torch.tensor([*BIAS, BANNED], device=DEVICE).repeat(num_rows, 1)
        values, until = torch.tensor([*BIAS.values(), 0], device=DEVICE).repeat(num_rows, 1), torch.zeros_like(ids)
        until[:, -1] = 1
        adjustments = Adjustments(torch.full_like(places(num_rows), ids.shape[1]), ids, values, until)
        operator.adjust(logits, where, torch.zeros_like(where), adjustments=adjustments)
    return logits


def drawn_many(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """A draw for each of the rows, which are alike but for their seeds. The edges of what may be drawn know no seed: in the interpreter
    they are found for one sample, and copied."""
    num_samples, chosen = len(rows.seeds_R), cut(8, 8)
    if DEVICE.type == "cuda":
        return triton.draw(logits.repeat(num_samples, 1), places(num_samples), places(num_samples), rows=rows, needs=Needs())
    memory, ids = triton.workspace(1, logits.shape[1], device=DEVICE, chosen=chosen), torch.full((num_samples,), -7, device=DEVICE)
    for launch in triton.launches(logits, places(1), places(1), rows=rows, needs=Needs(), ids_S=ids[:1], memory=memory, chosen=chosen)[:-1]:
        launch.run()
    axes = {"sums": 1, "states": 1, "edges": 1}
    copied = {name: getattr(memory, name).repeat_interleave(num_samples, dim=axes.get(name, 0)) for name in memory.__slots__}
    options = {"rows": rows, "needs": Needs(), "ids_S": ids, "memory": triton.Workspace(**copied), "chosen": chosen}
    triton.launches(logits.repeat(num_samples, 1), places(num_samples), places(num_samples), **options)[-1].run()
    return ids


def chi_square(ids: torch.Tensor, expected: torch.Tensor) -> tuple[float, int]:
    """The statistic, and its degrees of freedom; nothing may be drawn that has no weight."""
    seen, wanted = torch.bincount(ids.cpu(), minlength=len(expected)), expected / expected.sum() * len(ids)
    assert seen[expected == 0].sum() == 0
    return (((seen - wanted) ** 2 / wanted)[expected > 0]).sum().item(), int((expected > 0).sum()) - 1


MOST = {1: 19.6, 2: 23.1, 3: 25.9, 4: 28.5, 5: 30.9, 6: 33.2, 7: 35.3, 8: 37.4, 9: 39.4}
"""By degrees of freedom: a larger statistic has a probability below 1e-5."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ASKED)
def test_frequencies_follow_the_distribution(name):
    """Over many seeds: of the kernels, which draw just what the reference draws, and of many more draws of the reference."""
    asked = dict(ASKED[name])
    expected, changed = distribution(**asked), bool(asked.pop("changed", False))
    assert 3 <= int((expected > 0).sum()) <= 10
    rows = parameters(len(LOGITS), asked, copies=MANY_DRAWS)
    where, logits = places(MANY_DRAWS), changed_logits(reference, 3, parameters(len(LOGITS), asked, copies=4), changed=changed)
    wanted = reference.draw(logits.repeat(MANY_DRAWS, 1), where, where, rows=rows, needs=Needs())
    few = Rows(rows.seeds_R[:NUM_DRAWS], rows.parameters_RP[:NUM_DRAWS])
    ids = drawn_many(changed_logits(triton, 3, few, changed=changed), few)
    assert torch.equal(ids, wanted[:NUM_DRAWS])
    for each in (ids, wanted):
        statistic, freedom = chi_square(each, expected)
        assert statistic < MOST[freedom], (statistic, freedom)


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_what_changes_logits_equals_the_reference(seed):
    """Penalties, bias and bans, and counting, of some rows in any order."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    vocab_size, num_rows = rng.choice((1, 40, 1500, rng.randint(1, 3000))), rng.randint(1, 5)
    asked = [{"repetition": rng.choice((1, 1.3, 0.7)), "presence": rng.choice((0, 0.5)), "frequency": rng.choice((0, -0.5, 0.25))} for _ in range(num_rows)]
    rows, width = parameters(vocab_size, *asked), min(vocab_size, rng.choice((1, 7, 300)))
    output = torch.randint(0, 3, (num_rows, vocab_size), generator=generator, dtype=torch.int32).to(DEVICE)
    prompt = (torch.rand(num_rows, vocab_size, generator=generator) < 0.2).to(DEVICE)
    ids = torch.stack([torch.randperm(vocab_size, generator=generator)[:width] for _ in range(num_rows)])
    adjustments = Adjustments(
        torch.randint(0, width + 1, (num_rows,), generator=generator).to(DEVICE), ids.to(DEVICE),
        torch.randn(num_rows, width, generator=generator).to(DEVICE), torch.randint(0, 4, (num_rows, width), generator=generator).to(DEVICE),
    )  # fmt: skip
    where = torch.randperm(num_rows, generator=generator)[: rng.randint(0, num_rows)].to(DEVICE)
    positions = torch.randint(0, 4, where.shape, generator=generator).to(DEVICE)
    wide = torch.randn(len(where), vocab_size + 3, generator=generator).to(DEVICE)
    drawn_ids, results = torch.randint(-1, vocab_size, where.shape, generator=generator).to(DEVICE), []
    for operator in (triton, reference):
        logits, seen = wide.clone()[:, :vocab_size], Seen(output.clone(), prompt)
        operator.penalize(logits, where, seen, rows=rows)
        operator.adjust(logits, where, positions, adjustments=adjustments)
        operator.count(drawn_ids, where, seen)
        results.append((logits, seen.output_RV))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=1e-6)
    assert torch.equal(results[0][1], results[1][1])


def test_penalties():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 1500, generator=generator).to(DEVICE)
    asked = {"repetition": 1.3, "presence": 0.5, "frequency": 0.25}
    rows = parameters(1500, {}, asked, {"frequency": -0.5}, {"repetition": 0.7})
    seen = Seen(
        torch.randint(0, 3, (4, 1500), generator=generator, dtype=torch.int32).to(DEVICE),
        (torch.rand(4, 1500, generator=generator) < 0.2).to(DEVICE),
    )
    where = torch.tensor([3, 0, 1], device=DEVICE)
    ours, theirs = logits.clone(), logits.clone()
    triton.penalize(ours, where, seen, rows=rows)
    reference.penalize(theirs, where, seen, rows=rows)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert torch.equal(ours[1], logits[1]) and not torch.equal(ours[2], logits[2])


def test_bias_and_bans():
    generator = torch.Generator().manual_seed(5)
    ids = torch.stack([torch.randperm(600, generator=generator)[:300] for _ in range(3)])
    until = torch.where(torch.rand(3, 300, generator=generator) < 0.1, 4, 0)
    adjustments = Adjustments(
        torch.tensor([0, 300, 5], device=DEVICE),
        ids.to(DEVICE),
        torch.randn(3, 300, generator=generator).to(DEVICE),
        until.to(DEVICE),
    )
    logits, where = torch.randn(4, 600, generator=generator).to(DEVICE), torch.tensor([2, 1, 0, 1], device=DEVICE)
    positions = torch.tensor([0, 3, 0, 4], device=DEVICE)
    ours, theirs = logits.clone(), logits.clone()
    triton.adjust(ours, where, positions, adjustments=adjustments)
    reference.adjust(theirs, where, positions, adjustments=adjustments)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[2], logits[2])
    assert int(ours[1].isinf().sum()) == int((until[1] == 4).sum()) and not ours[3].isinf().any()


def test_counting():
    seen = [
        Seen(torch.ones(5, 30, dtype=torch.int32, device=DEVICE), torch.zeros(5, 30, dtype=torch.bool, device=DEVICE))
        for _ in "ab"
    ]
    ids, where = torch.tensor([29, -1, 0, 29, 29], device=DEVICE), torch.tensor([4, 1, 0, 4, 3], device=DEVICE)
    triton.count(ids, where, seen[0])
    reference.count(ids, where, seen[1])
    assert torch.equal(seen[0].output_RV, seen[1].output_RV)
    assert int(seen[0].output_RV.sum()) == 154 and int(seen[0].output_RV[4, 29]) == 3


def test_rows_with_gaps_are_refused():
    logits, rows, gaps = torch.zeros(2, 8, device=DEVICE), parameters(8, {}, {}), places(4)[::2]
    seen = Seen(torch.zeros(2, 8, dtype=torch.int32, device=DEVICE), torch.zeros(2, 8, dtype=torch.bool, device=DEVICE))
    for call in (
        lambda: triton.draw(logits, gaps, places(2), rows=rows, needs=Needs()),
        lambda: triton.draw(logits, places(2), gaps, rows=rows, needs=Needs()),
        lambda: triton.penalize(logits, gaps, seen, rows=rows),
        lambda: triton.count(places(2), gaps, seen),
    ):
        with pytest.raises(ValueError, match="_S has strides"):
            call()


def test_what_rows_ask_for_with_gaps_is_refused():
    logits, asked, wide = torch.zeros(2, 8, device=DEVICE), parameters(8, {}, {}), places(8).view(2, 4)
    known = Adjustments(places(2), wide, wide.float(), wide)
    with pytest.raises(ValueError, match="seeds_R has strides"):
        triton.draw(logits, places(2), places(2), rows=Rows(places(4)[::2], asked.parameters_RP), needs=Needs())
    for name, gaps in (("until_RB", wide.t().contiguous().t()), ("lens_R", places(4)[::2])):
        with pytest.raises(ValueError, match=f"{name} has strides"):
            triton.adjust(logits, places(2), places(2), adjustments=replace(known, **{name: gaps}))
