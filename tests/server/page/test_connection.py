"""The page's connection: lost servers, rest, what waits for it, proxies in between."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser, expect

from tests.server.fake_server import Fake, fake_serving, until
from tests.server.page.conftest import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")
RECORD_STATES = """
    window.states = [];
    addEventListener("DOMContentLoaded", () => {
        const state = document.getElementById("state");
        new MutationObserver(() => state.textContent !== states.at(-1) && states.push(state.textContent)).observe(state, { childList: true });
    });
"""
Opener = Callable[..., Awaitable[ChatPage]]
TARGET: web.AppKey[str] = web.AppKey("target", str)
PASSES: web.AppKey[tuple[str, ...]] = web.AppKey("passes", tuple)


async def test_a_server_that_is_lost_and_returns(open_chat: Opener) -> None:
    async with fake_serving() as first:
        chat = await open_chat(served=first)
        port = int(first.address.rpartition(":")[2])
        await chat.ask("hello", "Hi!")
        await chat.write("a story")
        chat.say("Once", finish=None)
        await expect(chat.answer.locator(".text")).to_have_text("Once")
    await expect(chat.state).to_have_text("No connection")
    await expect(chat.page.get_by_text("The server does not answer")).to_be_visible()
    await expect(chat.answer.locator(".note")).to_contain_text("connection was lost")
    await chat.message.fill("still there?")
    await expect(chat.button("Send")).to_be_disabled()
    async with fake_serving(port=port) as second:
        chat.engine = second.engine
        await chat.ready()
        await expect(chat.page.get_by_text("The server does not answer")).to_be_hidden()
        await chat.button("Send").click()
        await until(lambda: second.engine.streams)
        assert [message["content"] for message in chat.asked()] == ["hello", "Hi!", "a story", "Once", "still there?"]
    assert all("ERR_CONNECTION_REFUSED" in problem for problem in chat.problems)
    chat.problems.clear()


async def test_a_quiet_page_rests_and_wakes(open_chat: Opener) -> None:
    async with fake_serving(chat_idle_timeout=1.0) as quiet:
        chat = await open_chat()
        await chat.page.add_init_script(RECORD_STATES)
        await chat.page.goto(quiet.address)
        await expect(chat.state).to_have_text("Resting")
        await asyncio.sleep(0.5)
        assert await chat.page.evaluate("states") == ["Connected", "Resting"]  # nothing connects by itself
        await chat.message.press("h")
        await expect(chat.state).to_have_text("Connected")
        assert (await chat.page.evaluate("states"))[:4] == ["Connected", "Resting", "Connecting", "Connected"]


async def test_a_page_that_is_closed_while_the_server_is_lost_keeps_what_was_said(open_chat: Opener) -> None:
    async with fake_serving() as first:
        chat = await open_chat(served=first)
        port = int(first.address.rpartition(":")[2])
        await chat.write("a story")
        chat.say("Once", finish=None)
        await expect(chat.answer.locator(".text")).to_have_text("Once")
    await expect(chat.state).to_have_text("No connection")
    chat.problems.clear()
    await chat.page.goto("about:blank")
    async with fake_serving(port=port) as second:
        await chat.page.goto(second.address)
        await chat.ready()
        assert await chat.texts() == ["a story", "Once"]


async def test_what_is_sent_while_the_page_rests_waits_for_the_connection(open_chat: Opener) -> None:
    async with fake_serving(chat_idle_timeout=1.0) as quiet:
        chat = await open_chat(served=quiet)
        await chat.ask("hello", "Hi!")
        await chat.message.fill("and now?")
        await expect(chat.state).to_have_text("Resting")
        await chat.message.press("Enter")
        await until(lambda: len(quiet.engine.streams) == 2)
        assert [message["content"] for message in chat.asked()] == ["hello", "Hi!", "and now?"]
        chat.say("Well.")
        await expect(chat.answer.locator(".text")).to_have_text("Well.")
        await expect(chat.message).to_have_value("")
        await expect(chat.state).to_have_text("Resting")
        await chat.button("Answer again", chat.answer).click()
        await until(lambda: len(quiet.engine.streams) == 3)
        chat.say("Indeed.")
        await expect(chat.answer.locator(".text")).to_have_text("Indeed.")


async def test_what_waits_for_a_connection_that_does_not_come_is_given_back(open_chat: Opener) -> None:
    async with fake_serving(chat_idle_timeout=1.0) as quiet:
        chat = await open_chat(served=quiet)
        await chat.ask("hello", "Hi!")
        await chat.message.fill("and now?")
        await expect(chat.state).to_have_text("Resting")
    await chat.message.press("Enter")
    await expect(chat.state).to_have_text("No connection")
    await expect(chat.message).to_have_value("and now?")
    assert len(quiet.engine.streams) == 1
    assert all("ERR_CONNECTION_REFUSED" in problem for problem in chat.problems)
    chat.problems.clear()


async def test_branches_can_be_looked_at_without_a_server(open_chat: Opener) -> None:
    async with fake_serving() as first:
        chat = await open_chat(served=first)
        port = int(first.address.rpartition(":")[2])
        await chat.ask("hello", "first")
        await chat.button("Answer again", chat.answer).click()
        await until(lambda: len(first.engine.streams) == 2)
        chat.say("second")
        await chat.finished()
        await chat.ask("more", "third")
    await expect(chat.state).to_have_text("No connection")
    answer = chat.turns.nth(1)
    await chat.button("Previous version", answer).click()
    assert await chat.texts() == ["hello", "first"]
    await expect(chat.button("Next version", answer)).to_be_focused()
    await chat.button("Next version", answer).click()
    assert await chat.texts() == ["hello", "second", "more", "third"]
    await chat.button("Previous version", answer).click()
    async with fake_serving(port=port) as second:
        chat.engine = second.engine
        await chat.ready()
        await chat.ask("and?", "Yes.")
        assert [message["content"] for message in chat.asked()] == ["hello", "first", "and?"]
    chat.problems.clear()


async def pass_on(request: web.Request) -> web.StreamResponse:
    """A proxy that asks by its own idea of Host, and knows no WebSockets unless it is told to pass `Upgrade`."""
    target, passes = request.app[TARGET], request.app[PASSES]
    kept = {name: value for name, value in request.headers.items() if name.lower() in passes}
    async with aiohttp.ClientSession() as client, client.request(request.method, target + request.raw_path, headers=kept) as reply:
        headers = {name: reply.headers[name] for name in ("Content-Type", "Content-Security-Policy") if name in reply.headers}
        return web.Response(status=reply.status, body=await reply.read(), headers=headers)


@pytest.mark.parametrize(
    ("passes", "words"),
    [(("origin",), "Start it with --allow-origin http://127.0.0.1:"), (("origin", "host"), "has to pass the headers Upgrade and Connection")],
)
async def test_a_proxy_that_keeps_the_socket_away_is_told_in_words(browser: Browser, fake: Fake, passes: tuple[str, ...], words: str) -> None:
    proxy = web.Application()
    proxy[TARGET], proxy[PASSES] = fake.address, passes
    proxy.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(proxy)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    page = await browser.new_page()
    await page.goto(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await expect(page.locator("#lost")).to_contain_text(words)
    await expect(page.get_by_text("The server does not answer")).to_be_hidden()
    await page.close()
    await runner.cleanup()
