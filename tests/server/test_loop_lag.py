"""A request that is refused costs the others next to nothing, however large its body is.

What is counted is work: texts that are encoded or rendered, and the calls of functions that the loop's busiest callback makes,
Python's and C's. Neither depends on how busy the machine is, as a clock would.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

from actorllm.house import MAX_ENCODED
from actorllm.tokenizer.load import HEAD_CHARACTERS, Tokenizer
from actorllm.tokenizer.template_process import TemplateProcess
from tests.server.conftest import Served, post_bytes, serving

COMPLETIONS, CHAT, TOKENIZE = "/v1/completions", "/v1/chat/completions", "/tokenize"
NUM_CHARACTERS = 4_000_000
MOST_CALLS, MOST_CALLS_A_STREAM = 2000, 1000
"""That one callback of the loop may make, and for each stream whose tokens it hands on."""
NUM_STREAMS = 64


def listed(item: str, count: int) -> str:
    return f"[{','.join([item] * count)}]"


def body_of(**fields: str) -> bytes:
    """A body of fields that are JSON already."""
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in fields.items())}}}".encode()


MESSAGE = '{"role":"user","content":"a"}'
LONG_MESSAGE = json.dumps([{"role": "user", "content": "a" * NUM_CHARACTERS}])
BIASES = json.dumps({str(token_id): 1 for token_id in range(300_000)})
REFUSED = {
    "text": (COMPLETIONS, body_of(prompt=json.dumps("a " * (NUM_CHARACTERS // 2)))),
    "escaped text": (COMPLETIONS, body_of(prompt='"' + "\\u00e9" * 650_000 + '"')),
    "ids": (COMPLETIONS, body_of(prompt=listed("1", 2_000_000))),
    "ids that are just too many": (COMPLETIONS, body_of(prompt=listed("1", 60_000))),
    "prompts": (COMPLETIONS, body_of(prompt=listed("[1]", 1_000_000))),
    "texts": (COMPLETIONS, body_of(prompt=listed('"a"', 1_000_000))),
    "biases": (COMPLETIONS, body_of(prompt='"a"', logit_bias=BIASES)),
    "fewer biases": (COMPLETIONS, body_of(prompt='"a"', logit_bias=json.dumps({str(token_id): 1 for token_id in range(2000)}))),
    "stop ids": (COMPLETIONS, body_of(prompt='"a"', stop_token_ids=listed("5", 1_800_000))),
    "fewer stop ids": (COMPLETIONS, body_of(prompt='"a"', stop_token_ids=listed("5", 30_000))),
    "stop strings": (COMPLETIONS, body_of(prompt='"a"', stop=listed('"a"', 900_000))),
    "unknown fields": (COMPLETIONS, body_of(prompt='"a"', logit_bias='{"x":1}', unknown=listed("{}", 1_000_000))),
    "tools": (CHAT, body_of(messages=f"[{MESSAGE}]", tools=listed("[]", 1_000_000))),
    "a message": (CHAT, body_of(messages=LONG_MESSAGE)),
    "messages": (CHAT, body_of(messages=listed(MESSAGE, 90_000))),
    "fewer messages": (CHAT, body_of(messages=listed(MESSAGE, 5000))),
    "text to tokenize": (TOKENIZE, body_of(prompt=json.dumps("a " * (NUM_CHARACTERS // 2)))),
    "messages to tokenize": (TOKENIZE, body_of(messages=LONG_MESSAGE)),
    "ids to detokenize": ("/detokenize", body_of(tokens=listed("1", 2_000_000))),
}


class Work:
    """What requests have made the tokenizer and the template do."""

    def __init__(self) -> None:
        self.num_encoded = 0
        self.num_rendered = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    counted = Work()
    encode, render = Tokenizer._encoding, TemplateProcess.render

    async def counting_encode(self: Tokenizer, text: str):
        counted.num_encoded += len(text)
        return await encode(self, text)

    async def counting_render(self: TemplateProcess, request):
        counted.num_rendered += 1
        return await render(self, request)

    monkeypatch.setattr(Tokenizer, "_encoding", counting_encode)
    monkeypatch.setattr(TemplateProcess, "render", counting_render)
    return counted


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many functions each callback that the event loop runs from now on calls."""
    num_calls: list[int] = []
    run, count = asyncio.Handle._run, 0

    def counting(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    def counted(handle: asyncio.Handle) -> None:
        before = count
        run(handle)
        num_calls.append(count - before)

    monkeypatch.setattr(asyncio.Handle, "_run", counted)
    sys.setprofile(counting)
    yield num_calls
    sys.setprofile(None)


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refused_body_is_hardly_worked_on(echo: Served, work: Work, callbacks: list[int], name: str) -> None:
    path, data = REFUSED[name]
    assert len(data) < 4 * 2**20
    status, answer = await post_bytes(echo, path, data)
    assert status == 400 and answer["error"]["message"], answer
    assert max(callbacks) < MOST_CALLS
    assert work.num_encoded <= HEAD_CHARACTERS * (MAX_ENCODED if path == TOKENIZE else echo.engine.info.context_len)
    assert work.num_rendered == (LONG_MESSAGE.encode() in data)


async def test_streams_go_on_while_large_bodies_are_refused(callbacks: list[int]) -> None:
    async with serving(kv_slots=2**15) as served:
        stop = asyncio.Event()

        async def stream() -> int:
            """Chunks until the others are refused."""
            num_chunks = 0
            while not stop.is_set():
                body = {"prompt": "the", "max_tokens": 32, "ignore_eos": True, "stream": True}
                async with served.client.post(served.address + COMPLETIONS, json=body) as response:
                    assert response.status == 200
                    num_chunks += (await response.text()).count('"text"')
            return num_chunks

        streams = [asyncio.create_task(stream()) for _ in range(NUM_STREAMS)]
        await asyncio.sleep(0.1)
        try:
            for name in ("text", "ids", "texts", "biases", "a message", "messages"):
                status, _ = await post_bytes(served, *REFUSED[name])
                assert status == 400
        finally:
            stop.set()
        counts = await asyncio.gather(*streams)
        assert all(count > 0 and count % 32 == 0 for count in counts)
        assert max(callbacks) < MOST_CALLS + NUM_STREAMS * MOST_CALLS_A_STREAM
