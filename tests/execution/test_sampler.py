"""Sampling by request: frequencies, penalties, bias, bans, logprobs, and independence of batch mates."""

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from actorllm.execution.sampler import Sampled, Sampler
from actorllm.execution.upload import Upload
from actorllm.messages import MAX_BIASES, MAX_STOP_IDS, RowSampling, pack

CPU = torch.device("cpu")


class Bench:
    """A sampler whose rows are opened from keyword sets."""

    def __init__(self, sampling, vocab_size: int, rows: list[dict], **options) -> None:
        self.sampler = Sampler(vocab_size, max_running=max(8, len(rows)), device=CPU, **options)
        self.num_rows = len(rows)
        for row, values in enumerate(rows):
            seen = {f"{name}_ids": pack(values.get(name, ())) for name in ("prompt", "output")}
            values = {key: value for key, value in values.items() if key not in ("prompt", "output")}
            self.open(row, sampling(**values), **seen)

    def open(self, row: int, sampling: RowSampling, *, prompt_ids: bytes = b"", output_ids: bytes = b"") -> None:
        upload = Upload(CPU)
        self.sampler.open(row, sampling, prompt_ids=prompt_ids, output_ids=output_ids, upload=upload)
        upload.send()

    def sample(self, logits: torch.Tensor, position: int = 0, rows: list[int] | None = None) -> Sampled:
        rows = list(range(self.num_rows)) if rows is None else rows
        upload = Upload(CPU)
        plan = self.sampler.plan(pack(rows), pack([position] * len(rows)), upload)
        upload.send()
        return self.sampler.sample(logits.clone(), plan)


def test_greedy_takes_the_best_token(sampling) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert Bench(sampling, 3, [{}, {"temperature": 1e-9}]).sample(logits).ids_S.tolist() == [1, 0]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 8},
        {"temperature": 1.5, "top_p": 0.7},
        {"temperature": 1.0, "top_k": 12, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_frequencies_follow_the_distribution(sampling, values: dict) -> None:
    logits = torch.from_numpy(np.random.default_rng(5).normal(scale=1.5, size=(1, 24)).astype(np.float32))
    processed = TemperatureLogitsWarper(values["temperature"])(None, logits.clone())
    if "top_k" in values:
        processed = TopKLogitsWarper(values["top_k"])(None, processed)
    if "top_p" in values:
        processed = TopPLogitsWarper(values["top_p"])(None, processed)
    expected = processed.softmax(-1)[0].double()
    expected[expected < values.get("min_p", 0.0) * expected.max()] = 0
    expected /= expected.sum()
    count = 4000
    bench = Bench(sampling, 24, [values | {"seed": seed} for seed in range(count)])
    drawn = bench.sample(logits.repeat(count, 1), position=3).ids_S
    seen = torch.bincount(drawn, minlength=24).double()
    possible = expected > 0
    assert seen[~possible].sum() == 0
    chi_square = ((seen - count * expected) ** 2 / (count * expected))[possible].sum().item()
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_a_row_alone_and_in_a_batch_samples_the_same(sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"temperature": 1.0, "seed": 1},
        {},
        {"temperature": 0.8, "top_p": 0.9, "seed": 2},
        {"temperature": 1.2, "top_k": 5, "repetition_penalty": 1.3, "prompt": [1, 2], "seed": 3},
        {"presence_penalty": 1.0, "logprobs": 3},
        {"temperature": 1.0, "min_p": 0.2, "seed": 4, "logit_bias": {7: 2.0}},
    ]
    together = Bench(sampling, 50, rows)
    alone = [Bench(sampling, 50, [row]) for row in rows]
    for position in range(20):
        logits = torch.randn(len(rows), 50, generator=generator) * 2
        batch = together.sample(logits, position).ids_S.tolist()
        single = [bench.sample(logits[i : i + 1], position).ids_S.item() for i, bench in enumerate(alone)]
        assert batch == single


def test_a_resumed_row_goes_on_as_it_would_have(sampling) -> None:
    generator = torch.Generator().manual_seed(1)
    values = {
        "temperature": 1.0, "seed": 9, "repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": 0.3,
        "prompt": [3, 3, 4],
    }  # fmt: skip
    logits = torch.randn(12, 1, 20, generator=generator)
    whole = Bench(sampling, 20, [values])
    tokens = [whole.sample(logits[i], i).ids_S.item() for i in range(12)]
    resumed = Bench(sampling, 20, [values | {"output": tokens[:5]}])
    assert [resumed.sample(logits[i], i).ids_S.item() for i in range(5, 12)] == tokens[5:]


def test_the_repetition_penalty_is_transformers(sampling) -> None:
    generator = torch.Generator().manual_seed(2)
    prompt, output = [1, 5, 5, 9], [7, 2]
    bench = Bench(sampling, 30, [{"repetition_penalty": 1.7, "prompt": prompt, "output": output}])
    penalty = RepetitionPenaltyLogitsProcessor(1.7)
    seen = prompt + output
    for position in range(30):
        logits = torch.randn(1, 30, generator=generator) * 3
        token = bench.sample(logits, position).ids_S.item()
        assert token == penalty(torch.tensor([seen]), logits.clone()).argmax().item()
        seen.append(token)


def test_presence_and_frequency_count_the_output_alone(sampling) -> None:
    logits = torch.tensor([[1.0, 0.9, 0.75, 0.0]])
    once = {"prompt": [0, 0, 0], "presence_penalty": 0.2}
    bench = Bench(sampling, 4, [once])
    assert [bench.sample(logits, i).ids_S.item() for i in range(4)] == [0, 1, 0, 0]
    bench = Bench(sampling, 4, [{"frequency_penalty": 0.2}])
    assert [bench.sample(logits, i).ids_S.item() for i in range(6)] == [0, 1, 0, 2, 1, 0]


def test_a_row_starts_without_its_predecessors_counts(sampling) -> None:
    bench = Bench(sampling, 3, [{"presence_penalty": 2.0, "output": [0]}])
    logits = torch.tensor([[1.0, 0.5, 0.0]])
    assert bench.sample(logits).ids_S.item() == 1
    bench.sampler.close(0)
    bench.open(0, sampling(presence_penalty=2.0))
    assert bench.sample(logits).ids_S.item() == 0


def test_bias_moves_and_bans_hold_until_min_tokens(sampling) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert Bench(sampling, 3, [{"logit_bias": {2: 2.5, 1: -1.0}}]).sample(logits).ids_S.item() == 2
    bench = Bench(sampling, 3, [{"min_tokens": 2, "banned_ids": (1,), "logit_bias": {1: 100.0}}])
    assert [bench.sample(logits, position).ids_S.item() for position in range(3)] == [2, 2, 1]


@pytest.mark.parametrize("values", [{}, {"temperature": 1.0}, {"logit_bias": {3: 100.0}}])
def test_ids_of_a_padded_vocabulary_are_never_sampled(sampling, values: dict) -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5, 50.0]]).repeat(50, 1)
    bench = Bench(sampling, 4, [values | {"seed": seed} for seed in range(50)], invalid_ids=(3,))
    assert 3 not in bench.sample(logits).ids_S.tolist()


def test_logprobs_are_of_the_raw_distribution(sampling) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    bench = Bench(sampling, 4, [{"logprobs": 2, "logit_bias": {0: 50.0}}], invalid_ids=(3,))
    found = bench.sample(logits)
    raw = logits.log_softmax(-1)[0]
    assert found.ids_S.item() == 0
    assert found.scores is not None
    assert found.scores.chosen_N.item() == pytest.approx(raw[0].item())
    assert found.scores.ids_NW.tolist() == [[1, 3]]
    assert found.scores.values_NW[0].tolist() == pytest.approx([raw[1].item(), raw[3].item()])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_fails_alone(sampling, bad: float) -> None:
    logits = torch.tensor([[0.0, 3.0], [0.0, bad], [5.0, 0.0], [bad, bad]])
    bench = Bench(sampling, 2, [{}, {}, {"temperature": 0.5}, {"temperature": 0.5, "top_p": 0.5}])
    assert bench.sample(logits).ids_S.tolist() == [1, -1, 0, -1]


def test_a_tiny_temperature_does_not_overflow(sampling) -> None:
    logits = torch.tensor([[-3e4, 2e4, 0.0]])
    assert Bench(sampling, 3, [{"temperature": 1e-5, "top_p": 0.5}]).sample(logits).ids_S.item() == 1


def test_a_token_that_is_biased_and_banned_is_biased_once_it_may_be_sampled(sampling) -> None:
    bench = Bench(sampling, 5, [{"logit_bias": {2: 3.0}, "min_tokens": 2, "banned_ids": (2, 4)}])
    logits = torch.tensor([[0.0, 1.0, 0.5, 0.2, 5.0]])
    assert [bench.sample(logits, position).ids_S.item() for position in (0, 1, 2)] == [1, 1, 4]
    logits[0, 4] = 1.0
    assert bench.sample(logits, 2).ids_S.item() == 2


def test_a_row_starts_without_its_predecessors_bias(sampling) -> None:
    bench = Bench(sampling, 40, [{"logit_bias": dict.fromkeys(range(20), 9.0)}, {"logit_bias": {3: 1.0}}])
    bench.open(0, sampling())
    logits = torch.zeros(2, 40)
    logits[:, 30] = 0.5
    assert bench.sample(logits).ids_S.tolist() == [30, 3]


def test_the_tables_of_bias_stay_small_whatever_requests_ask_for(sampling) -> None:
    most = {"logit_bias": dict.fromkeys(range(MAX_BIASES), 1.0), "min_tokens": 1, "banned_ids": tuple(range(5000, 5000 + MAX_STOP_IDS))}
    bench = Bench(sampling, 6000, [most] * 8)
    bench.sample(torch.zeros(8, 6000))
    tables = bench.sampler._adjusted.tables
    assert sum(table.nbytes for table in (tables.ids_RB, tables.values_RB, tables.until_RB)) <= 8 * 20 * 2048


def test_a_greedy_row_starts_without_its_predecessors_temperature(sampling) -> None:
    bench = Bench(sampling, 1000, [{"temperature": 50.0}, {"temperature": 1.0}])
    bench.open(0, sampling())
    logits = torch.zeros(2, 1000)
    logits[:, 7] = 1.0
    assert bench.sample(logits).ids_S[0].item() == 7
