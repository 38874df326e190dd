"""Complete several prompts at once from a script: `python examples/batch_of_prompts.py [MODEL_DIRECTORY]`."""

import sys

from actorllm import LLM, SamplingParams

PROMPTS = ["the quick", "the lazy", "the brown"]


def main(path: str | None) -> None:
    """Print one line a prompt."""
    with LLM(path) as llm:
        for prompt, text in zip(PROMPTS, llm.generate(PROMPTS, SamplingParams(max_tokens=16, temperature=0.0)), strict=True):
            print(f"{prompt!r} -> {text!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
