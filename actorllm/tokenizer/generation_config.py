"""A checkpoint's generation_config.json: its end tokens and its defaults for sampling.

Every key is read, or changes nothing for a stated reason; what would change texts and is not built is warned about. Knows no request.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from actorllm.errors import InvalidRequest, TokenizerError
from actorllm.messages import SamplingParams
from actorllm.tokenizer.files import read_object
from actorllm.tokenizer.load import Tokenizer

logger = logging.getLogger(__name__)
FILE_NAME = "generation_config.json"
READ_KEYS = frozenset(
    (
        *("eos_token_id", "bos_token_id", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
        *("max_new_tokens", "stop_strings", "suppress_tokens", "bad_words_ids"),
    )
)

NEUTRAL_KEYS = MappingProxyType(
    dict.fromkeys(("_commit_hash", "_from_model_config", "transformers_version", "model_type", "_name_or_path"), "a writer's note")
    | dict.fromkeys(("unsloth_fixed", "unsloth_version", "auto_map"), "a writer's note")
    | dict.fromkeys(("torch_dtype", "dtype", "attn_implementation"), "read from config.json, or chosen here")
    | dict.fromkeys(("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"), "one cache for all")
    | dict.fromkeys(("compile_config", "disable_compile", "continuous_batching_config", "low_memory"), "how, not what")
    | dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), "a request asks")
    | dict.fromkeys(("return_dict_in_generate", "return_dict", "return_legacy_cache", "num_return_sequences"), "a request asks")
    | dict.fromkeys(("max_length", "max_time"), "a request's own limits, its deadlines and the context end it")
    | dict.fromkeys(("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty"), "only beams are changed by it")
    | dict.fromkeys(("pad_token_id", "decoder_start_token_id", "chat_format", "max_window_size"), "nothing is padded; templates")
    | dict.fromkeys(("user_token_id", "assistant_token_id"), "the chat template writes them")
    | dict.fromkeys(("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"), "there is no encoder")
    | dict.fromkeys(("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "speculation_type"), "speculation")
    | dict.fromkeys(("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"), "speculation")
    | dict.fromkeys(("target_lookbehind", "assistant_ensemble_weight", "use_mtp"), "speculation")
    | dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size"), "speculation")
    | dict.fromkeys(("renormalize_logits", "remove_invalid_values"), "draws are by proportion; invalid logits fail their request")
)
"""Keys that never change a text here, and why."""

UNBUILT_KEYS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "begin_suppress_tokens": ([],),
        "constraints": ([],),
        "dola_layers": (),
        "epsilon_cutoff": (0,),
        "eta_cutoff": (0,),
        "exponential_decay_length_penalty": (),
        "force_words_ids": ([],),
        "forced_bos_token_id": (),
        "forced_decoder_ids": ([],),
        "forced_eos_token_id": (),
        "guidance_scale": (1,),
        "min_length": (0,),
        "min_new_tokens": (0,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        "penalty_alpha": (0,),
        "sequence_bias": ({}, []),
        "token_healing": (False,),
        "top_h": (1,),
        "typical_p": (1,),
        "watermarking_config": (),
    }
)
"""Keys that would change texts -> the values, beside null, with which they do not."""


class GenerationDefaults(Struct, frozen=True, kw_only=True):
    """What the checkpoint recommends; None where it says nothing. `temperature` is 0 where it asks not to sample."""

    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    suppressed_ids: tuple[int, ...] = ()
    """Never sampled."""

    def params(self) -> SamplingParams:
        """The same as `SamplingParams`. Raises `TokenizerError` for a value out of its range."""
        stated = {
            "usual_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "stop": self.stop,
        }
        try:
            return SamplingParams(**{name: value for name, value in stated.items() if value is not None})
        except InvalidRequest as error:
            raise TokenizerError(f"{FILE_NAME}: {error.message}") from error


def load_generation_config(directory: Path, *, tokenizer: Tokenizer | None = None) -> GenerationDefaults:
    """generation_config.json's sampling defaults; warns of what it asks for in vain.

    EOS ids come from the first of generation_config.json, config.json and `tokenizer` that has some. Raises
    `TokenizerError` naming the file for a value of the wrong type.
    """
    generation = read_object(directory / FILE_NAME)
    config = read_object(directory / "config.json")
    reader = _Reader(generation, FILE_NAME)
    _warn_of_unbuilt(generation)
    eos_ids = reader.ids("eos_token_id") or _Reader(config, "config.json").ids("eos_token_id")
    bos_ids = reader.ids("bos_token_id") or _Reader(config, "config.json").ids("bos_token_id")
    if tokenizer is not None:
        eos_ids = eos_ids or ((tokenizer.eos_id,) if tokenizer.eos_id is not None else ())
        bos_ids = bos_ids or ((tokenizer.bos_id,) if tokenizer.bos_id is not None else ())
    return GenerationDefaults(
        eos_ids=eos_ids,
        bos_id=bos_ids[0] if bos_ids else None,
        temperature=0.0 if generation.get("do_sample") is False else reader.number("temperature"),
        top_k=reader.integer("top_k"),
        top_p=reader.number("top_p"),
        min_p=reader.number("min_p"),
        repetition_penalty=reader.number("repetition_penalty"),
        max_new_tokens=reader.integer("max_new_tokens"),
        stop=reader.texts("stop_strings"),
        suppressed_ids=reader.ids("suppress_tokens") + tuple(word[0] for word in reader.words("bad_words_ids") if len(word) == 1),
    )


def _warn_of_unbuilt(generation: Mapping[str, Any]) -> None:
    """A line in the log for the keys that would change texts, and one for those that nobody knows."""
    unbuilt = [
        f"{key} = {generation[key]!r:.60}"
        for key in sorted(UNBUILT_KEYS.keys() & generation.keys())
        if generation[key] is not None and generation[key] not in UNBUILT_KEYS[key]
    ]
    if any(len(word) > 1 for word in _Reader(generation, FILE_NAME).words("bad_words_ids")):
        unbuilt.append("bad_words_ids of several tokens")
    if unbuilt:
        logger.warning("%s asks for what is not built, so texts may differ from the authors': %s", FILE_NAME, ", ".join(unbuilt))
    unknown = sorted(generation.keys() - READ_KEYS - NEUTRAL_KEYS.keys() - UNBUILT_KEYS.keys())
    if unknown:
        logger.warning("%s has keys that are not known and change nothing: %s", FILE_NAME, ", ".join(unknown))


class _Reader:
    """Typed access to a JSON object, with errors that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], file_name: str) -> None:
        self._values = values
        self._file_name = file_name

    def number(self, key: str) -> float | None:
        value = self._values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TokenizerError(f"{self._file_name}: {key} must be a number, not {value!r}")
        return value

    def integer(self, key: str) -> int | None:
        value = self._values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TokenizerError(f"{self._file_name}: {key} must be an integer, not {value!r}")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them."""
        value = self._values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
            raise TokenizerError(f"{self._file_name}: {key} must be a token id or a list of them, not {value!r}")
        return tuple(token_id for token_id in ids if token_id >= 0)  # some write -1 for "none"

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A text or a list of them; None for an absent key."""
        value = self._values.get(key)
        texts = [value] if isinstance(value, str) else value
        if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise TokenizerError(f"{self._file_name}: {key} must be text or a list of texts, not {value!r}")
        return None if texts is None else tuple(texts)

    def words(self, key: str) -> list[list[int]]:
        """Words as lists of their token ids; [] for an absent key."""
        words = self._values.get(key) or []
        if not (isinstance(words, list) and all(isinstance(word, list) and all(type(each) is int for each in word) for word in words)):
            raise TokenizerError(f"{self._file_name}: {key} must be a list of lists of token ids, not {words!r:.80}")
        return words
