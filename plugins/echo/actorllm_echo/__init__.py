"""The echo model: no weights, and a next token that is a fixed function of the last one."""

from pathlib import Path

from actorllm_echo.model import EchoConfig, EchoForCausalLM

__all__ = ["EchoConfig", "EchoForCausalLM", "directory"]


def directory() -> Path:
    """The bundled checkpoint: config, tokenizer, generation defaults; there are no weights."""
    return Path(__file__).parent / "checkpoint"
