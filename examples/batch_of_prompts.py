"""Ask several questions at once from a script: `python examples/batch_of_prompts.py [MODEL]`."""

import sys

from actorllm import LLM, SamplingParams

QUESTIONS = ["How do I start the server?", "What is 27 + 15?", "Tell me a story about a fox."]


def main(path: str | None) -> None:
    """Print one line a question."""
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    with LLM(path) as llm:
        answers = llm.generate(conversations, SamplingParams(max_tokens=120, temperature=0.0))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question!r} -> {answer!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
