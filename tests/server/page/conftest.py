"""The chat page in a real browser, over an engine that says what a test wants it to say."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect

from tests.chromium import launched
from tests.server.fake_engine import FakeEngine
from tests.server.fake_server import Fake, fake_serving, until

expect.set_options(timeout=20_000)  # milliseconds: a busy machine may take long, and then a test only takes longer


class ChatPage:
    """A page that is open, and the engine behind it."""

    def __init__(self, page: Page, engine: FakeEngine) -> None:
        self.page = page
        self.engine = engine
        self.problems: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.message = page.get_by_label("Message", exact=True)
        self.turns = page.locator(".turn")
        self.answer = page.locator(".turn.assistant").last
        self.notice = page.get_by_role("alert")
        self.state = page.locator("#state")

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    async def ready(self) -> None:
        """The socket is open."""
        await expect(self.state).to_have_text("Connected")

    async def write(self, text: str) -> None:
        """Send a message; the engine's newest stream is its answer."""
        num_streams = len(self.engine.streams)
        await self.message.fill(text)
        await self.button("Send").click()
        await until(lambda: len(self.engine.streams) > num_streams)

    async def ask(self, text: str, answer: str) -> None:
        """A message and its whole answer."""
        await self.write(text)
        self.say(answer)
        await self.finished()

    def say(self, text: str, *, finish: str | None = "stop") -> None:
        """The newest answer goes on by this text, and ends with it unless `finish` is None."""
        self.engine.push(text, stream=-1, finish=finish)

    async def finished(self) -> None:
        """The newest answer has its end on the page."""
        await expect(self.answer).to_have_attribute("aria-busy", "false")


    async def texts(self) -> list[str]:
        """What each turn on show says."""
        return await self.page.locator(".turn > .text").all_inner_texts()

    def button(self, name: str, within: Locator | None = None) -> Locator:
        return (within or self.page).get_by_role("button", name=name, exact=True)

    def asked(self) -> list[dict]:
        """The conversation that the engine was given last."""
        return self.engine.submitted[-1][0].messages


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def fake() -> AsyncIterator[Fake]:
    async with fake_serving() as served:
        yield served


@pytest_asyncio.fixture(loop_scope="session")
async def open_chat(browser: Browser, fake: Fake) -> AsyncIterator[Callable[..., Awaitable[ChatPage]]]:
    """Opens the page; keywords are the browser context's. No page may have complained at the end."""
    contexts: list[BrowserContext] = []
    chats: list[ChatPage] = []

    async def open_it(*, context: BrowserContext | None = None, served: Fake = fake, **options: Any) -> ChatPage:
        if context is None:
            context = await browser.new_context(**({"viewport": {"width": 1100, "height": 720}} | options))
            contexts.append(context)
        chat = ChatPage(await context.new_page(), served.engine)
        chats.append(chat)
        await chat.page.goto(served.address)
        await chat.ready()
        return chat

    yield open_it
    for context in contexts:
        await context.close()
    assert not [problem for chat in chats for problem in chat.problems]


@pytest_asyncio.fixture(loop_scope="session")
async def chat(open_chat: Callable[..., Awaitable[ChatPage]]) -> ChatPage:
    return await open_chat()
