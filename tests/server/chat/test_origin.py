"""Who may open a chat socket, and how the others are told."""

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

from actorllm.errors import ForeignOrigin
from actorllm.server.chat.socket import check_origin
from tests.server.chat.chat_client import chatting
from tests.server.fake_server import Fake, fake_serving


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [(None, True), ("own", True), ("https://evil.example", False), ("null", False), ("http://127.0.0.1", False), ("http://[", False), ("https://friend.example", True)],
)  # fmt: skip
async def test_origin(origin: str | None, *, is_let_in: bool) -> None:
    async with fake_serving(allowed_origins=("https://friend.example",)) as fake:
        given = {"own": fake.address}.get(origin or "", origin)
        headers = {} if given is None else {"Origin": given}
        if is_let_in:
            async with chatting(fake.client, fake.address, headers=headers) as chat:
                assert chat.hello["type"] == "hello"
            return
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with chatting(fake.client, fake.address, headers=headers):
                pass
        assert caught.value.status == 403


@pytest.mark.parametrize(
    ("origin", "host", "is_own"),
    [
        ("http://chat.example", "chat.example", True),
        ("https://chat.example", "chat.example", True),  # a proxy takes the encryption off
        ("https://chat.example", "chat.example:443", True),
        ("https://chat.example", "Chat.Example", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("https://chat.example", "chat.example:80", False),
        ("https://chat.example:8443", "chat.example", False),
        ("https://chat.example", "127.0.0.1:8000", False),  # a proxy that does not pass Host
        ("ftp://chat.example", "chat.example", False),
        ("https://chat.example:x", "chat.example", False),
        ("https://chat.example.evil", "chat.example", False),
        ("https://evil@chat.example", "chat.example", True),  # no browser sends a user's name
    ],
)
def test_whose_page_it_is(origin: str, host: str, *, is_own: bool) -> None:
    request = make_mocked_request("GET", "/v1/chat/ws", headers={"Origin": origin, "Host": host})
    if is_own:
        check_origin(request, ())
        return
    with pytest.raises(ForeignOrigin, match="serve with --allow-origin ORIGIN"):
        check_origin(request, ())
    check_origin(request, (origin,))


async def test_a_page_can_ask_why_it_got_no_socket(fake: Fake) -> None:
    for origin, status, code in ((fake.address, 400, "InvalidRequest"), ("https://chat.example", 403, "ForeignOrigin")):
        async with fake.client.post(fake.address + "/v1/chat/ws", headers={"Origin": origin}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (status, code)


async def test_a_plain_get_is_told_what_this_is(fake: Fake) -> None:
    async with fake.client.get(fake.address + "/v1/chat/ws") as response:
        assert response.status == 400
        assert "this address is a WebSocket: connect with a WebSocket client" in (await response.json())["error"]["message"]
