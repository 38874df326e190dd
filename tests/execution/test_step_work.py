"""What a step reads and multiplies, against sums by hand."""

from pathlib import Path

import pytest

from actorllm.execution.step_work import StepWork
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings
from tests.parity.families.case import from_transformers

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
ATTENTION = 2 * (64 * 64 * 2 + 2 * 32 * 64)
"""Weights of both layers."""
PLAIN = EngineSettings(execution=ExecutionSettings(device="cpu"))
CODES = EngineSettings(model=ModelSettings(quantize="int4"), execution=ExecutionSettings(device="cpu", kv_cache="int8"))


def work_of(architecture: str, folder: Path, settings: EngineSettings = PLAIN, **sizes: object) -> StepWork:
    from_transformers(architecture, {**SIZES, **sizes}, seed=0, directory=folder)
    return StepWork.of(folder, settings)


@pytest.mark.parametrize("is_tied", [False, True])
def test_plain_weights(is_tied: bool, tmp_path: Path) -> None:
    """A lookup reads nothing of the embedding, and a tied head all of it."""
    work = work_of("LlamaForCausalLM", tmp_path, tie_word_embeddings=is_tied)
    linear, head = ATTENTION + 2 * 3 * 96 * 64, 100 * 64
    token_bytes = 2 * 2 * 2 * 16 * 4
    assert work.decode_bytes(3, 10) == 4 * (linear + head) + 3 * 10 * token_bytes
    assert work.product_ops(7) == 2 * (7 * linear + head)


def test_codes_of_weights_and_of_the_cache(tmp_path: Path) -> None:
    work = work_of("LlamaForCausalLM", tmp_path, CODES)
    linear, head = ATTENTION + 2 * 3 * 96 * 64, 100 * 64
    assert work.decode_bytes(2, 10) == linear * 4.5 / 8 + head + 2 * 10 * (2 * 2 * 2 * (16 + 4))


def test_windows_end_what_is_read_of_the_cache(tmp_path: Path) -> None:
    work = work_of("MistralForCausalLM", tmp_path, sliding_window=8)
    assert work.decode_bytes(1, 100) - work.decode_bytes(1, 8) == 0 < work.decode_bytes(1, 8) - work.decode_bytes(1, 7)


def test_a_token_is_multiplied_by_its_experts_alone(tmp_path: Path) -> None:
    work = work_of("MixtralForCausalLM", tmp_path, num_local_experts=8, num_experts_per_tok=2)
    expert, head = 2 * 3 * 96 * 64, 100 * 64
    assert work.product_ops(5) == 2 * (5 * (ATTENTION + 2 * expert) + head)
    assert work.decode_bytes(1, 0) == pytest.approx(4 * (ATTENTION + 2 * expert + head))
    assert work.decode_bytes(2, 0) == pytest.approx(4 * (ATTENTION + (2 + 2 * 6 / 8) * expert + head))
    assert work.decode_bytes(500, 0) == pytest.approx(4 * (ATTENTION + 8 * expert + head))


def test_latents(tmp_path: Path) -> None:
    """Down to a latent of 16 and a rotated key of 8 for all heads, and up to keys and values of 16."""
    sizes = {
        "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4,
        "first_k_dense_replace": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 1,
    }  # fmt: skip
    work = work_of("DeepseekV2ForCausalLM", tmp_path, **sizes)
    attention = 4 * 24 * 64 + (16 + 8) * 64 + 4 * (16 + 16) * 16 + 64 * 64
    assert work.num_linear == 2 * (attention + 3 * 96 * 64)
    assert work.decode_bytes(1, 2) - work.decode_bytes(1, 1) == 2 * (16 + 8) * 4
