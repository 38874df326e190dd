"""Several tabs of one browser over the same chats."""

from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import expect

from tests.server.fake_server import until
from tests.server.page.conftest import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")
Opener = Callable[..., Awaitable[ChatPage]]


async def test_two_tabs_see_the_same_chats(chat: ChatPage, open_chat: Opener) -> None:
    await chat.ask("about cats", "Cats purr.")
    other = await open_chat(context=chat.page.context)
    await expect(other.turns).to_have_count(2)
    await other.ask("more", "Cats sleep.")
    await expect(chat.turns).to_have_count(4)
    await chat.ask("and?", "Cats play.")
    assert [message["content"] for message in chat.asked()] == ["about cats", "Cats purr.", "more", "Cats sleep.", "and?"]


async def test_another_tab_does_not_take_an_answer_under_way_for_one_cut_short(chat: ChatPage, open_chat: Opener) -> None:
    await chat.ask("about cats", "Cats purr.")
    other = await open_chat(context=chat.page.context)
    await chat.write("more")
    chat.say("Cats", finish=None)
    await expect(chat.answer.locator(".text")).to_have_text("Cats")
    await expect(other.page.locator(".note:visible")).to_have_count(0)
    chat.say(" sleep.")
    await expect(other.turns).to_have_count(4)
    assert await other.texts() == ["about cats", "Cats purr.", "more", "Cats sleep."]


async def test_two_tabs_that_go_on_with_one_chat_lose_nothing(chat: ChatPage, open_chat: Opener) -> None:
    await chat.ask("about cats", "Cats purr.")
    other = await open_chat(context=chat.page.context)
    await chat.write("one")
    await expect(other.turns).to_have_count(3)
    await other.button("Try again").click()  # the question is there, its answer is on its way to the first tab
    await until(lambda: len(chat.engine.streams) == 3)
    chat.engine.push("Asked first.", stream=1, finish="stop")
    await chat.finished()
    await expect(other.page.locator("#sidebar .pick")).to_have_count(1)
    other.say("Asked second.")
    await expect(other.notice).to_contain_text("a chat of its own now")
    for tab, answer in ((chat, "Asked first."), (other, "Asked second.")):
        assert await tab.texts() == ["about cats", "Cats purr.", "one", answer]
        await expect(tab.page.locator("#sidebar .pick")).to_have_count(2)
    await other.ask("go on", "Third.")
    assert [message["content"] for message in other.asked()][-2:] == ["Asked second.", "go on"]
    assert await chat.texts() == ["about cats", "Cats purr.", "one", "Asked first."]
    await other.page.locator("#sidebar .pick").nth(1).click()
    await expect(other.answer.locator(".text")).to_have_text("Asked first.")
