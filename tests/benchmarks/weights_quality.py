"""What rounding of the weights, or of keys and values, costs: `python tests/benchmarks/weights_quality.py [MODEL] [--text FILE]`.

MODEL is a folder; without one it is the demo model. The text is FILE's, in rows of `--tokens`. Without one it is drawn from the model
itself in float32, so every position is a fair one of its own distribution: an answer to each of the questions that the demo model was not
trained on (tests/demo/held_out.json, or `--questions`), whose tokens alone are counted, or, of another model, `--rows` texts that begin
with `--first-id`. For each form of the weights, and for an int8 cache beside float32 weights: how often its most likely next token is
that of float32, and the Kullback-Leibler divergence of float32's distribution from its own, in nats, on average over the positions. int8
and int4 round activations, too, but for the line that says so; int4 keeps embeddings and heads in int8, as it is served. Exits with 1 if
a form misses what is asked.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from actorllm.execution.model_plan import plan_model
from actorllm.house import DEMO_MODEL
from actorllm.layers.shard import Shard
from actorllm.models.contract import CausalLM
from actorllm.models.loading import load_weights
from actorllm.settings import EngineSettings, ModelSettings
from actorllm.testing.tiny import TinyCache, logits_of
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.compact import CompactFormat
from actorllm_kernels.linear import Bf16, Form, Int4, Int8, WeightOnly

FORMS: dict[str, tuple[Form, Form]] = {
    "bfloat16": (Bf16(), Bf16()),
    "int8": (Int8(), Int8()),
    "int8 weights alone": (WeightOnly(8), WeightOnly(8)),
    "int4 by 32": (Int4(32), Int8()),
    "int4 by 128": (Int4(128), Int8()),
}

HELD_OUT = Path(__file__).parents[1] / "demo" / "held_out.json"

ASKED: dict[str, tuple[float, float]] = {"int8": (0.99, 0.002), "int4 by 32": (0.95, 0.03), "int8 cache": (0.0, 0.001)}
"""At least this share of equal top tokens, and less than this divergence in nats."""


def load(folder: Path, forms: tuple[Form, Form] | None = None) -> CausalLM:
    plan = plan_model(folder, EngineSettings(model=ModelSettings(path=str(folder), dtype="float32")))
    storage = plan.storage if forms is None else CompactFormat(plan.storage, forms[0], table_form=forms[1])
    model = plan.build(Shard())
    with Checkpoint.open(folder, storage=storage) as checkpoint:
        load_weights(model, checkpoint)
    return model


def prompts_of(folder: Path, questions: Path) -> list[list[int]]:
    """Ids of each question as the model's chat template writes it, up to where the answer begins."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [question["ask"] for question in json.loads(questions.read_text())["questions"]]
    chats = [[{"role": "user", "content": text}] for text in asked]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def rows_of(folder: Path, text: str, *, first_id: int, num_tokens: int) -> list[list[int]]:
    """The text's ids in rows of `num_tokens`, each after `first_id`."""
    ids = AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    return [[first_id, *ids[begin : begin + num_tokens]] for begin in range(0, len(ids), num_tokens)]


def draw(model: CausalLM, prompts: list[list[int]], *, num_tokens: int, end_id: int | None) -> list[list[int]]:
    """The prompts, each with what follows: at most `num_tokens`, up to `end_id`."""
    generator = torch.Generator().manual_seed(1)
    cache = TinyCache(model.cache_groups, num_rows=len(prompts), context=max(map(len, prompts)) + num_tokens)
    rows, live = [list(prompt) for prompt in prompts], list(range(len(prompts)))
    logits = torch.stack([logits_of(model, cache, [(row, ids)])[-1] for row, ids in enumerate(rows)])
    for _ in range(num_tokens):
        ids = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).flatten().tolist()
        for row, token_id in zip(live, ids, strict=True):
            rows[row].append(token_id)
        live = [row for row, token_id in zip(live, ids, strict=True) if token_id != end_id]
        if not live:
            break
        logits = logits_of(model, cache, [(row, rows[row][-1:]) for row in live])
    return rows


def log_shares(model: CausalLM, rows: list[list[int]], begins: list[int], *, kv_dtype: torch.dtype | None = None) -> Tensor:
    """[positions, vocabulary] over all rows, of the tokens from `begins` on."""
    parts = []
    for ids, begin in zip(rows, begins, strict=True):
        cache = TinyCache(model.cache_groups, num_rows=1, context=len(ids), kv_dtype=kv_dtype)
        parts.append(logits_of(model, cache, [(0, ids[:-1])])[begin - 1 :])
    return torch.cat(parts).log_softmax(dim=-1)


@torch.inference_mode()
def main() -> bool:
    """Whether every form reached what is asked of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, nargs="?", default=DEMO_MODEL)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--first-id", type=int, default=1, help="the token that begins a text")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--text", type=Path, help="a file of plain text")
    given.add_argument("--questions", type=Path, help="JSON with questions, whose answers are the text")
    arguments = parser.parse_args()
    model, questions = load(arguments.model), arguments.questions
    if questions is None and arguments.model == DEMO_MODEL:
        questions = HELD_OUT
    if arguments.text is not None:
        rows = rows_of(arguments.model, arguments.text.read_text(), first_id=arguments.first_id, num_tokens=arguments.tokens)
        if not rows:
            parser.error(f"--text {arguments.text} has no token: name a file with words in it")
        begins, origin = [1] * len(rows), f"of {arguments.text}"
    else:
        prompts, end_id, origin = [[arguments.first_id]] * arguments.rows, None, "that the model wrote itself"
        if questions is not None:
            prompts, origin = prompts_of(arguments.model, questions), f"that the model answered to the questions of {questions.name}"
            end_id = json.loads((arguments.model / "config.json").read_text())["eos_token_id"]
        rows, begins = draw(model, prompts, num_tokens=arguments.tokens, end_id=end_id), list(map(len, prompts))
    print(f"{arguments.model.name}, text {origin}")
    exact = log_shares(model, rows, begins)
    is_reached = True
    for name, forms in FORMS.items():
        is_reached &= report(name, exact, log_shares(load(arguments.model, forms), rows, begins))
    return report("int8 cache", exact, log_shares(model, rows, begins, kv_dtype=torch.int8)) and is_reached


def report(name: str, exact: Tensor, rounded: Tensor) -> bool:
    """Print how far distributions, as logarithms [positions, vocabulary], are from the exact ones, and whether that is near enough."""
    agreement = (rounded.argmax(dim=-1) == exact.argmax(dim=-1)).double().mean()
    divergence = (exact.exp() * (exact - rounded)).sum(dim=-1).mean()
    least, most = ASKED.get(name, (0.0, float("inf")))
    asked = f" (asked: {least:.0%}, below {most:g})" if name in ASKED else ""
    print(f"{name:18} the same top token at {agreement:.2%} of {len(exact)} positions, divergence {divergence:.6f} nats{asked}", flush=True)
    return bool(agreement >= least and divergence < most)


if __name__ == "__main__":
    sys.exit(not main())
