"""The examples that talk to a running server: one over the echo model, whose words are known."""

import asyncio
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.chromium import launched
from tests.server.conftest import serving
from tests.server.fake_server import fake_serving, until

PANGRAM = "The quick brown fox jumps over the lazy dog."


async def run(example: Path, *arguments: str, typed: str = "") -> str:
    """What an example prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(example), *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        printed, complaints = await process.communicate(typed.encode())
    assert process.returncode == 0, complaints.decode()
    return printed.decode()


async def test_the_websocket_client(repository: Path) -> None:
    async with serving() as echo:
        socket = echo.address.replace("http", "ws") + "/v1/chat/ws"
        printed = await run(repository / "examples" / "chat_socket.py", socket, typed="hello\nagain\n")
    [first, second] = printed.splitlines()
    assert PANGRAM in first and PANGRAM in second


async def test_the_websocket_client_prints_errors(repository: Path) -> None:
    async with fake_serving() as fake:
        fake.engine.refusal = RuntimeError()
        socket = fake.address.replace("http", "ws") + "/v1/chat/ws"
        printed = await run(repository / "examples" / "chat_socket.py", socket, typed="hello\n")
    assert "internal error" in printed


async def test_the_websocket_client_says_why_it_was_closed(repository: Path) -> None:
    async with fake_serving(chat_idle_timeout=1.5, chat_ping_interval=0.5) as fake:
        socket = fake.address.replace("http", "ws") + "/v1/chat/ws"
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(repository / "examples" / "chat_socket.py"), socket, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            assert process.stdout is not None
            printed = await process.stdout.read()  # nothing is typed; pings are answered until then
            assert await process.wait() == 1
    assert b"has closed the chat, code 4408" in printed


def test_the_websocket_client_has_thirty_lines(repository: Path) -> None:
    assert len((repository / "examples" / "chat_socket.py").read_text().splitlines()) <= 30


async def test_the_openai_client(repository: Path) -> None:
    async with serving() as echo:
        printed = await run(repository / "examples" / "openai_client.py", echo.address + "/v1", "What is this?")
    assert printed.count(PANGRAM[:20]) >= 2
    assert printed.startswith("echo: ")


@pytest.mark.parametrize("is_let_in", [True, False])
async def test_the_browser_client(repository: Path, *, is_let_in: bool) -> None:
    async with fake_serving(allowed_origins=("null",) if is_let_in else ()) as fake, launched() as browser:
        page = await browser.new_page()
        socket = fake.address.replace("http", "ws") + "/v1/chat/ws"
        await page.goto((repository / "examples" / "chat_in_browser.html").as_uri() + f"?url={socket}")
        if not is_let_in:
            await expect(page.locator("p.error")).to_contain_text("does not let this page in (actorllm serve --allow-origin null)")
            return
        await page.get_by_label("Message").fill("hello")
        await page.get_by_label("Message").press("Enter")
        await until(lambda: fake.engine.streams)
        fake.engine.push("<b>Hi</b>")
        fake.engine.push(" there.", finish="stop")
        await expect(page.locator("p.assistant")).to_have_text("<b>Hi</b> there.")
        await expect(page.get_by_label("Message")).to_be_focused()
        fake.engine.refusal = RuntimeError()
        await page.get_by_label("Message").fill("more")
        await page.get_by_label("Message").press("Enter")
        await expect(page.locator("p.error")).to_contain_text("internal error")
