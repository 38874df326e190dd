"""Reads a config.json so that nothing in it is overlooked.

Every key is taken, or is neutral for a stated reason; what is left changes a computation that nobody implemented, and is an
error. Knows no model.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from actorllm.errors import UnsupportedConfig

MAX_SIZE = 2**18
MAX_TOKENS = 2**27
MAX_VOCABULARY = 2**22
MAX_LAYERS = 4096
"""Beyond these a size is implausible: several times what the largest published models have."""

_OF_TOKENS = ("position", "window", "length", "context", "seq_len")
_NEVER = object()
_LAYER_TYPES = frozenset(("sliding_attention", "full_attention"))

# Keys that never change the computed logits, and why.
NEUTRAL_KEYS = {
    "architectures": "read by the catalog",
    "model_type": "a name; the architecture decides",
    "auto_map": "points to code that is never run",
    "transformers_version": "a note of the writer",
    "_name_or_path": "a note of the writer",
    "_attn_implementation": "a choice of kernels",
    "_flash_attn_2_enabled": "a choice of kernels",
    "torch_dtype": "read by the loader",
    "dtype": "read by the loader",
    "quantization_config": "read by the loader",
    "use_cache": "there is always a cache",
    "cache_implementation": "there is always a cache",
    "initializer_range": "training",
    "attention_dropout": "training",
    "hidden_dropout": "training",
    "resid_pdrop": "training",
    "embd_pdrop": "training",
    "attn_pdrop": "training",
    "pretraining_tp": "splits a sum, which only changes its rounding",
    "bos_token_id": "read with the generation config",
    "eos_token_id": "read with the generation config",
    "pad_token_id": "there is no padding",
    "unk_token_id": "read by the tokenizer",
    "output_attentions": "never returned",
    "output_hidden_states": "never returned",
    "return_dict": "a shape of Python results",
    "gradient_checkpointing": "training",
    "is_decoder": "always one",
    "id2label": "classification",
    "label2id": "classification",
    "num_labels": "classification",
    "problem_type": "classification",
    "finetuning_task": "classification",
    "chunk_size_feed_forward": "splits a computation without changing it",
    "tokenizer_class": "read by the tokenizer",
    "prefix": "a text of old pipelines",
    "task_specific_params": "generation defaults of old pipelines",
    "sep_token_id": "read by the tokenizer",
    "decoder_start_token_id": "encoder-decoder models",
    "cross_attention_hidden_size": "encoder-decoder models",
    "torchscript": "export",
    "use_bfloat16": "another framework's dtype",
    "tf_legacy_loss": "training",
    "max_length": "generation",
    "min_length": "generation",
    "temperature": "generation",
    "top_k": "generation",
    "top_p": "generation",
    "typical_p": "generation",
    "repetition_penalty": "generation",
    "do_sample": "generation",
    "num_beams": "generation",
    "attn_implementation": "a choice of kernels",
    "unsloth_version": "a note of the writer",
    "unsloth_fixed": "a note of the writer",
}

# Keys that are neutral with just this value.
NEUTRAL_VALUES = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
}


def _most(key: str) -> int:
    """The largest plausible value of a size, by its key."""
    if "vocab" in key:
        return MAX_VOCABULARY
    return MAX_TOKENS if any(part in key for part in _OF_TOKENS) else MAX_SIZE


class ConfigReader:
    """Takes keys from a config; `finish` raises `UnsupportedConfig` naming what was not taken."""

    def __init__(self, config: Mapping[str, Any], *, aliases: Mapping[str, str] | None = None) -> None:
        """`aliases` are other names of keys (other -> the one that is read); raises `UnsupportedConfig` if both are there and
        contradict each other."""
        self._left = dict(config)
        self._architecture = (config.get("architectures") or ["the model"])[0]
        for other, key in (aliases or {}).items():
            value, known = self._left.pop(other, None), self._left.get(key)
            if None not in (value, known) and value != known:
                raise UnsupportedConfig(f"config.json: {other} = {value!r} contradicts {key} = {known!r}")
            self._left[key] = known if value is None else value

    def take(self, key: str, default: Any = None) -> Any:
        """The value of an optional key; null counts as absent."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def size(self, key: str, default: int | None = None, *, least: int = 1, most: int | None = None) -> int:
        """A whole number, at most what is plausible for such a key; raises `UnsupportedConfig` for anything else, or if it is
        missing without a default."""
        most = most or _most(key)
        value = self.take(key, default)
        if value is None:
            raise UnsupportedConfig(f"config.json has no {key!r}, which {self._architecture} needs")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UnsupportedConfig(
                f"config.json: {key} is {value!r:.40}, which is implausible: it must be a whole number from {least} to {most}; "
                "download config.json again, or correct it"
            )
        return value

    def optional_size(self, key: str) -> int | None:
        """A whole number above zero, or None where the key is absent or null."""
        return None if self._left.get(key) is None else self.size(key)

    def layers(self, key: str = "num_hidden_layers") -> int:
        """The number of layers."""
        return self.size(key, most=MAX_LAYERS)

    def head_dim(self, hidden_size: int, num_heads: int) -> int:
        """The size of a head where all heads together are as wide as the model; raises if they cannot be."""
        if hidden_size % num_heads:
            raise UnsupportedConfig(f"config.json: a hidden size of {hidden_size} cannot be split into {num_heads} heads")
        return hidden_size // num_heads

    def number(self, key: str, default: float) -> float:
        """A finite number above zero."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UnsupportedConfig(f"config.json: {key} is {value!r}, but must be a number above 0")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number above zero, or None where the key is absent or null."""
        return None if self._left.get(key) is None else self.number(key, 0.0)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise UnsupportedConfig(f"config.json: {key} is {value!r}, but must be true or false")
        return value

    def name(self, key: str, default: str) -> str:
        """A word, such as an activation's name."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise UnsupportedConfig(f"config.json: {key} is {value!r}, but must be a name")
        return value

    def expect(self, key: str, allowed: Collection[Any], why: str) -> None:
        """Take a key that may only have one of the `allowed` values (or be absent)."""
        value = self.take(key)
        if value is not None and value not in allowed:
            raise UnsupportedConfig(f"config.json: {key} = {value!r} is not implemented for {self._architecture}: {why}")

    def neutral(self, key: str, reason: str) -> None:
        """Take a key that changes nothing in this architecture; the reason is for whoever reads the code."""
        self._left.pop(key, None)

    def rope(self) -> dict[str, Any]:
        """The rotary parameters as one flat mapping: `rope_theta` with `rope_scaling` (older files) or
        `rope_parameters` (transformers 5)."""
        parameters: dict[str, Any] = {}
        for key in ("rope_scaling", "rope_parameters"):
            value = self.take(key, {})
            if not isinstance(value, dict):
                raise UnsupportedConfig(f"config.json: {key} is {value!r}, but must be an object")
            parameters.update(value)
        for key in ("rope_theta", "partial_rotary_factor"):
            if (value := self.take(key)) is not None:
                parameters.setdefault(key, value)
        return parameters

    def layer_windows(self, window: int | None, *, by_default: Sequence[bool]) -> tuple[int | None, ...]:
        """Each layer's window: `window` where `layer_types` says that attention slides, None where it is full.

        Without `layer_types` the layers marked in `by_default` slide.
        """
        kinds, num_layers = self.take("layer_types"), len(by_default)
        if kinds is None:
            return tuple(window if slides else None for slides in by_default)
        if not isinstance(kinds, list) or len(kinds) != num_layers or not _LAYER_TYPES.issuperset(map(str, kinds)):
            raise UnsupportedConfig(f"config.json: layer_types must name {num_layers} sliding or full layers, not {kinds!r}")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)

    def finish(self) -> None:
        """Raise if a key is left that might change the computation. Null says nothing."""
        left = {
            key: value
            for key, value in self._left.items()
            if value is not None and key not in NEUTRAL_KEYS and value != NEUTRAL_VALUES.get(key, _NEVER)
        }
        if left:
            shown = ", ".join(f"{key} = {value!r}"[:80] for key, value in sorted(left.items()))
            raise UnsupportedConfig(f"config.json asks {self._architecture} for what is not implemented: {shown}")
