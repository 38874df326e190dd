"""OpenAI's own client with a running server: `python examples/openai_client.py [http://127.0.0.1:8000/v1] [QUESTION]`.

Needs `pip install openai`. Asks for a whole answer, and then for the next one as a stream.
"""

import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main(url: str = "http://127.0.0.1:8000/v1", question: str = "What is ActorLLM?") -> None:
    """Two turns of one conversation."""
    client = OpenAI(base_url=url, api_key="not needed")
    model = client.models.list().data[0].id
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=60, temperature=0)
    answer = whole.choices[0].message.content
    print(f"{model}: {answer}")

    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Tell me more."}]
    print(f"{model}: ", end="")
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=60, temperature=0, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
