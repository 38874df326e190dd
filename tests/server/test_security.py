"""What a hostile or careless client can send costs it a clear answer, and nobody else anything."""

import asyncio
import gzip
import json
import re
from typing import Any

import pytest

from actorllm.server.api_types import UNSUPPORTED_FIELDS, ChatBody, CompletionBody
from tests.server.conftest import Served
from tests.server.fake_server import fake_serving

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
SMALL = {"prompt": "the", "messages": MESSAGES, "max_tokens": 1}
ODD_VALUES = [-1, -(2**63), 2**63, 10**30, 1.5, "1", True, None, [], {}, [10**30], {"1": 10**30}, {str(10**30): 1}]
JSON = {"Content-Type": "application/json"}


async def send(echo: Served, path: str, data: bytes, **headers: str) -> tuple[int, str]:
    async with echo.client.post(echo.address + path, data=data, headers=headers) as response:
        return response.status, await response.text()


async def raw(echo: Served, data: bytes) -> bytes:
    """What a bare socket gets back for `data`; b"" if the connection was cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(echo.address.rsplit(":", 1)[1]))
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read(4096)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def assert_it_still_serves(echo: Served) -> None:
    status, _ = await echo.post(COMPLETIONS, {"prompt": "the", "max_tokens": 1})
    assert status == 200
    assert echo.engine.statistics().num_open == 0
    assert echo.engine.statistics().slots_in_use == (0,)


@pytest.mark.parametrize(("path", "body_type"), [(COMPLETIONS, CompletionBody), (CHAT, ChatBody)])
async def test_no_value_of_any_field_is_a_500(echo: Served, path: str, body_type: Any) -> None:
    async def try_one(field: str, value: object) -> tuple[str, object, int, str]:
        status, text = await send(echo, path, json.dumps({**SMALL, field: value}).encode(), **JSON)
        return field, value, status, text

    fields = (*body_type.__struct_fields__, *UNSUPPORTED_FIELDS)
    results = await asyncio.gather(*(try_one(field, value) for field in fields for value in ODD_VALUES))
    assert not [result for result in results if result[2] not in (200, 400, 404, 503, 504)]  # the latter by small timeouts
    assert not [text for *_, text in results if re.search(r"0x[0-9a-f]{6,}|site-packages|Traceback", text)]
    assert not [field for field, value, status, _ in results if value is None and status != 200 and field not in SMALL]
    await assert_it_still_serves(echo)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none(echo: Served, path: str, number: str) -> None:
    body = json.dumps({**SMALL, "temperature": "?"}).replace('"?"', number)
    status, _ = await send(echo, path, body.encode(), **JSON)
    assert status == 400


@pytest.mark.parametrize("field", sorted(UNSUPPORTED_FIELDS))
async def test_what_is_not_built_is_refused_by_name(echo: Served, field: str) -> None:
    status, answer = await echo.post(CHAT, {**SMALL, field: {"type": "something"}})
    assert status == 400
    assert (answer["error"]["code"], answer["error"]["param"]) == ("UnsupportedField", field)
    for harmless in UNSUPPORTED_FIELDS[field]:
        assert (await echo.post(CHAT, {**SMALL, field: harmless}))[0] == 200


async def test_unknown_fields_are_ignored(echo: Served) -> None:
    status, _ = await echo.post(CHAT, {**SMALL, "metadata": {"a": 1}, "service_tier": "auto", "made_up": [1]})
    assert status == 200


async def test_choices_and_messages_have_bounds(echo: Served) -> None:
    status, answer = await echo.post(COMPLETIONS, {"prompt": ["a"] * 100, "n": 50})
    assert (status, answer["error"]["param"]) == (400, "prompt")
    status, answer = await echo.post(COMPLETIONS, {"prompt": "a", "model": "x" * 100_000})
    assert status == 404 and len(answer["error"]["message"]) < 2000


async def test_only_declared_json_is_read(echo: Served) -> None:
    body = json.dumps(SMALL).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/octet-stream"):
        status, text = await send(echo, COMPLETIONS, body, **{"Content-Type": kind})
        assert status == 415 and "application/json" in text
    undeclared = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert b" 415 " in await raw(echo, undeclared)
    assert (await send(echo, COMPLETIONS, body, **{"Content-Type": "application/json; charset=utf-8"}))[0] == 200


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("localhost", True), ("LOCALHOST:1", True), ("127.0.0.1:80", True), ("127.1.2.3", True), ("[::1]:80", True), ("evil.example", False),
     ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("0.0.0.0", False), ("10.0.0.1:8000", False)],
)  # fmt: skip
async def test_names_that_a_foreign_page_could_rebind_are_refused(echo: Served, host: str, is_ours: bool) -> None:
    async with echo.client.get(echo.address + "/health", headers={"Host": host}) as response:
        assert response.status == (200 if is_ours else 403)


async def test_the_name_of_a_proxy_is_taken_once_its_site_is_allowed() -> None:
    async with fake_serving(allowed_origins=("https://chat.example:8443", "null")) as fake:
        for host, status in (("chat.example", 200), ("Chat.Example:8443", 200), ("evil.example", 403)):
            async with fake.client.get(fake.address + "/health", headers={"Host": host}) as response:
                assert response.status == status
                assert status == 200 or "serve with --allow-origin" in (await response.json())["error"]["message"]


async def test_headers_without_end(echo: Served) -> None:
    big = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10_000_000 + b"\r\n\r\n"
    assert (await raw(echo, big))[:12] in (b"", b"HTTP/1.0 400")
    many = b"".join(b"X-%d: a\r\n" % number for number in range(100_000))
    assert (await raw(echo, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n"))[:12] in (b"", b"HTTP/1.0 400")
    await assert_it_still_serves(echo)


async def test_connections_that_never_finish_their_request(echo: Served) -> None:
    port = int(echo.address.rsplit(":", 1)[1])
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
    for _, writer in opened:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
    await assert_it_still_serves(echo)
    for _, writer in opened:
        writer.close()


async def test_requests_that_two_servers_could_read_differently(echo: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert b" 400 " in await raw(echo, head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert b" 400 " in await raw(echo, b"\x16\x03\x01 no HTTP at all\r\n\r\n")


async def test_bodies_too_large(echo: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert b" 413 " in await raw(echo, head + b"Content-Length: 1000000000000000\r\n\r\n{")
    bomb = gzip.compress(b'{"prompt": "' + b"a" * 64_000_000 + b'"}')
    status, text = await send(echo, COMPLETIONS, bomb, **JSON, **{"Content-Encoding": "gzip"})
    assert status == 413
    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
    await assert_it_still_serves(echo)


async def test_deep_and_broken_json(echo: Served) -> None:
    for depth in (400, 900, 100_000):
        nested = b"[" * depth + b"]" * depth
        for field in (b"messages", b"chat_template_kwargs", b"made_up"):
            body = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "' + field + b'": ' + nested + b"}"
            assert (await send(echo, CHAT, body, **JSON))[0] in (200, 400)
    assert (await send(echo, COMPLETIONS, b'{"prompt": "\\ud800"}', **JSON))[0] == 400
    await assert_it_still_serves(echo)


async def test_one_request_id_may_be_sent_twice_at_once(echo: Served) -> None:
    body = json.dumps({"prompt": "the", "max_tokens": 50}).encode()
    answers = await asyncio.gather(*(send(echo, COMPLETIONS, body, **JSON, **{"X-Request-Id": "same"}) for _ in range(3)))
    assert [status for status, _ in answers] == [200] * 3
    assert {json.loads(text)["id"] for _, text in answers} == {"cmpl-same"}


@pytest.mark.parametrize("given", ["a b", "x" * 200, "a\u00e9", "<script>"])
async def test_an_unsafe_request_id_is_not_echoed(echo: Served, given: str) -> None:
    async with echo.client.get(echo.address + "/health", headers={"X-Request-Id": given}) as response:
        assert response.status == 200
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-Id"])


async def test_tokenize_and_detokenize_refuse_what_they_cannot_read(echo: Served) -> None:
    bad = [{}, {"prompt": None}, {"prompt": "a", "messages": MESSAGES}, {"prompt": 1}, {"messages": "a"}, {"messages": [{}]}]
    for body in bad:
        assert (await echo.post("/tokenize", body))[0] == 400, body
    assert (await echo.post("/tokenize", {"messages": [{"role": "user", "content": "a", "x": 10**30}]}))[0] in (200, 400)
    for tokens in (None, "a", [-1], [266], [10**30], [1.5], [True]):
        assert (await echo.post("/detokenize", {"tokens": tokens}))[0] == 400, tokens
    status, answer = await echo.post("/detokenize", {"tokens": [0] * (echo.engine.info.context_len + 1)})
    assert status == 400 and "more than the context" in answer["error"]["message"]


async def test_refused_requests_are_logged_by_their_reason(echo: Served, caplog) -> None:
    caplog.set_level("INFO", logger="actorllm.requests")
    await echo.post(COMPLETIONS, {"prompt": "a secret", "temperature": -1})
    [line] = [record.getMessage() for record in caplog.records if record.name == "actorllm.requests"]
    assert "status=400" in line and "error=InvalidRequest" in line and "secret" not in line
