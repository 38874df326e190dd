"""A conversation on the page: sending, streaming, stopping, branches, reloading, lost servers, errors in words."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import Browser, expect

from actorllm.errors import DeviceLost, QueueFull
from tests.server.conftest import serving
from tests.server.fake_server import until
from tests.server.page.conftest import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")
Opener = Callable[..., Awaitable[ChatPage]]


async def test_an_answer_streams(chat: ChatPage) -> None:
    await expect(chat.page.locator("#model")).to_have_text("fake")
    await chat.write("hello")
    await expect(chat.message).to_have_value("")
    chat.say("First", finish=None)
    await expect(chat.answer.locator(".text")).to_have_text("First")
    await expect(chat.answer).to_have_attribute("aria-busy", "true")
    chat.say(", then second.", finish=None)
    await expect(chat.answer.locator(".text")).to_have_text("First, then second.")
    chat.say("")
    await chat.finished()
    assert await chat.texts() == ["hello", "First, then second."]
    assert "3 tokens" in await chat.answer.locator(".figures").inner_text()
    assert "first token after" in await chat.answer.locator(".figures").inner_text()
    assert "tokens/s" in await chat.answer.locator(".figures").inner_text()
    await expect(chat.page.locator("#announcements")).to_have_text("First, then second.")
    await expect(chat.message).to_be_focused()


async def test_the_whole_conversation_is_the_next_prompt(chat: ChatPage) -> None:
    await chat.ask("one", "1")
    await chat.ask("two", "2")
    await chat.write("three")
    assert [message["content"] for message in chat.asked()] == ["one", "1", "two", "2", "three"]


@pytest.mark.parametrize("how", ["button", "key"])
async def test_stop(chat: ChatPage, how: str) -> None:
    await chat.write("tell me everything")
    chat.say("Well", finish=None)
    await expect(chat.answer.locator(".text")).to_have_text("Well")
    await (chat.button("Stop").click() if how == "button" else chat.page.keyboard.press("Escape"))
    await expect(chat.answer.locator(".note")).to_have_text("You stopped this answer.")
    assert len(chat.engine.aborted) == 1
    await chat.ask("thanks", "Bye")


async def test_regenerated_answers_are_versions(chat: ChatPage) -> None:
    await chat.ask("hello", "first")
    await chat.button("Answer again", chat.answer).click()
    await until(lambda: len(chat.engine.streams) == 2)
    assert [message["content"] for message in chat.asked()] == ["hello"]
    chat.say("second")
    await chat.finished()
    assert await chat.texts() == ["hello", "second"]
    await expect(chat.answer.locator(".branch")).to_contain_text("2 / 2")
    await chat.button("Previous version", chat.answer).click()
    await expect(chat.answer.locator(".text")).to_have_text("first")
    await expect(chat.button("Next version", chat.answer)).to_be_focused()  # the other one cannot be pressed any more
    await chat.write("and?")
    assert [message["content"] for message in chat.asked()] == ["hello", "first", "and?"]


async def test_an_edited_message_is_a_branch(chat: ChatPage) -> None:
    await chat.ask("helo", "What?")
    await chat.ask("hm", "Hm.")
    await chat.page.locator(".turn.user").first.hover()
    await chat.button("Edit", chat.turns.first).click()
    editor = chat.page.get_by_label("Edit your message")
    await expect(editor).to_have_value("helo")
    await editor.fill("hello")
    await editor.press("Enter")
    await until(lambda: len(chat.engine.streams) == 3)
    assert [message["content"] for message in chat.asked()] == ["hello"]
    chat.say("Hi!")
    await chat.finished()
    assert await chat.texts() == ["hello", "Hi!"]
    await chat.button("Previous version", chat.turns.first).click()
    await expect(chat.turns).to_have_count(4)
    assert await chat.texts() == ["helo", "What?", "hm", "Hm."]


async def test_reload(chat: ChatPage) -> None:
    await chat.ask("hello", "Hi!")
    await chat.write("a story")
    chat.say("Once upon", finish=None)
    await expect(chat.answer.locator(".text")).to_have_text("Once upon")
    await chat.page.reload()
    await chat.ready()
    assert await chat.texts() == ["hello", "Hi!", "a story", "Once upon"]
    await until(lambda: len(chat.engine.aborted) == 1)
    await expect(chat.answer.locator(".note")).to_contain_text("connection was lost")
    await chat.button("Try again").click()
    await until(lambda: len(chat.engine.streams) == 3)
    assert [message["content"] for message in chat.asked()] == ["hello", "Hi!", "a story"]
    chat.say("Once upon a time.")
    await expect(chat.answer.locator(".text")).to_have_text("Once upon a time.")
    await chat.finished()


async def test_errors_are_told_in_words_with_what_to_do(chat: ChatPage) -> None:
    chat.engine.refusal = QueueFull("too many requests wait")
    await chat.message.fill("hello")
    await chat.message.press("Enter")
    await expect(chat.answer.locator(".note")).to_contain_text("Wait a moment, then try again.")
    chat.engine.refusal = None
    await chat.button("Try again").click()
    await until(lambda: chat.engine.streams)
    chat.say("half", finish=None)
    chat.engine.fail(DeviceLost("the device is gone"))
    await expect(chat.answer.locator(".note")).to_contain_text("Once it is restarted, this page goes on by itself.")
    await expect(chat.answer.locator(".text")).to_have_text("half")


async def test_half_a_character_is_sent_as_a_mark(chat: ChatPage) -> None:
    await chat.message.evaluate("(area) => { area.value = 'hi \\ud83d'; area.dispatchEvent(new Event('input')); }")
    await chat.button("Send").click()
    await until(lambda: chat.engine.streams)
    assert chat.asked()[-1]["content"] == "hi \ufffd"


async def test_an_error_without_a_ref_is_about_the_oldest_message(chat: ChatPage) -> None:
    spoiling = "const send = WebSocket.prototype.send; WebSocket.prototype.send = function (frame) { send.call(this, window.spoil ? '{' : frame); };"
    await chat.ask("hello", "Hi!")
    await chat.page.evaluate(spoiling + " window.spoil = true;")
    await chat.message.fill("lost")
    await chat.button("Send").click()
    await expect(chat.notice).to_contain_text("do not understand each other")
    await expect(chat.message).to_have_value("lost")
    await chat.page.evaluate("window.spoil = false")
    await chat.ask("again", "Yes.")


SPOIL = """() => {
    const key = Object.keys(localStorage).find((each) => each.startsWith("actorllm.conversation."));
    const stored = JSON.parse(localStorage[key]);
    localStorage["actorllm.conversation.leaf"] = JSON.stringify({ ...stored, leaf: 999 });
    localStorage["actorllm.conversation.turns"] = JSON.stringify({ ...stored, system: 7, sampling: "x", changed: "now", turns: [
        null, { id: 3, parent: 4, role: "user", text: "x" }, ...stored.turns.slice(0, 1), { ...stored.turns[1], timings: 5, finish: "odd" },
        { id: 2, parent: 1, role: "assistant", text: "twice" }, { id: 9, parent: 1, role: "user", text: "no answer" }] });
    localStorage["actorllm.conversation.none"] = JSON.stringify({ ...stored, turns: ["x"] });
    localStorage["actorllm.settings"] = '{"sampling": null}';
    localStorage["actorllm.current"] = '"turns"';
}"""


async def test_stored_chats_that_are_broken_are_mended(chat: ChatPage) -> None:
    await chat.ask("hello", "Hi!")
    await chat.page.evaluate(SPOIL)
    await chat.page.reload()
    await chat.ready()
    assert await chat.texts() == ["hello", "Hi!"]
    await expect(chat.page.locator("#sidebar .pick")).to_have_count(3)
    await chat.ask("again", "Yes.")
    assert [message["content"] for message in chat.asked()] == ["hello", "Hi!", "again"]
    await chat.button("New chat").click()
    await chat.ask("fresh", "Yes.")


async def test_enter_in_an_editor_on_a_touch_screen_is_a_new_line(open_chat: Opener) -> None:
    chat = await open_chat(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    await chat.ask("hello", "Hi!")
    await chat.button("Edit", chat.turns.first).click()
    editor = chat.page.get_by_label("Edit your message")
    await editor.press("End")
    await editor.press("Enter")
    await expect(editor).to_have_value("hello\n")
    assert len(chat.engine.submitted) == 1


async def test_a_text_that_is_not_changed_makes_no_branch(chat: ChatPage) -> None:
    await chat.ask("hello", "Hi!")
    await chat.page.locator(".turn.user").first.hover()
    await chat.button("Edit", chat.turns.first).click()
    await chat.page.get_by_label("Edit your message").press("Enter")
    await expect(chat.page.get_by_label("Edit your message")).to_have_count(0)
    await chat.ask("more", "Yes.")
    assert [message["content"] for message in chat.asked()] == ["hello", "Hi!", "more"]


async def test_several_chats(chat: ChatPage) -> None:
    await chat.ask("about cats", "Cats purr.")
    await chat.button("New chat").click()
    await expect(chat.turns).to_have_count(0)
    await chat.write("about dogs")
    chat.say("Dogs", finish=None)
    await expect(chat.answer.locator(".text")).to_have_text("Dogs")
    await chat.button("about cats").click()
    await expect(chat.turns).to_have_count(2)
    chat.say(" bark.")
    await expect(chat.page.get_by_role("img", name="answering")).to_have_count(0)
    assert await chat.texts() == ["about cats", "Cats purr."]
    await chat.ask("more", "Cats sleep.")
    await chat.button("about dogs").click()
    await expect(chat.turns).to_have_count(2)
    assert await chat.texts() == ["about dogs", "Dogs bark."]
    chat.page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await chat.button("Delete chat: about dogs").click()
    await expect(chat.turns).to_have_count(0)
    await expect(chat.button("about dogs")).to_have_count(0)
    await chat.page.reload()
    await chat.ready()
    await expect(chat.button("about cats")).to_be_visible()
    await expect(chat.button("about dogs")).to_have_count(0)


async def test_a_chat_that_is_deleted_while_it_answers(chat: ChatPage) -> None:
    await chat.write("about cats")
    chat.page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await chat.button("Delete chat: about cats").click()
    await until(lambda: len(chat.engine.aborted) == 1)
    await expect(chat.turns).to_have_count(0)
    await chat.ask("about dogs", "Dogs bark.")


async def test_the_end_is_followed_unless_the_reader_has_gone_up(chat: ChatPage) -> None:
    scroller = chat.page.locator("#scroller")
    await chat.write("a long story")
    chat.say("word\n\n" * 100, finish=None)
    await expect(chat.answer.locator(".text p")).to_have_count(100)
    assert await scroller.evaluate("(box) => box.scrollHeight - box.scrollTop - box.clientHeight") < 5
    await scroller.evaluate("(box) => { box.scrollTop = 0; }")
    await expect(chat.button("To the end")).to_be_visible()
    chat.say("word\n\n" * 100)
    await chat.finished()
    assert await scroller.evaluate("(box) => box.scrollTop") == 0
    await chat.button("To the end").click()
    assert await scroller.evaluate("(box) => box.scrollHeight - box.scrollTop - box.clientHeight") < 5


async def test_a_browser_that_keeps_nothing(open_chat: Opener, browser: Browser) -> None:
    context = await browser.new_context()
    forbid = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });"
    await context.add_init_script(forbid)
    chat = await open_chat(context=context)
    await chat.ask("hello", "Hi!")
    assert await chat.texts() == ["hello", "Hi!"]
    await expect(chat.notice).to_contain_text("This browser cannot keep the chat")
    await context.close()


async def test_a_message_that_is_too_long_stays_where_it_was_written(chat: ChatPage) -> None:
    await chat.message.fill("x" * 1_100_000)
    await chat.button("Send").click()
    await expect(chat.notice).to_contain_text("longer than the server takes")
    assert len(await chat.message.input_value()) == 1_100_000
    await chat.ask("hello", "Hi!")


async def test_a_real_engine_behind_the_page(browser: Browser) -> None:
    page = await browser.new_page()
    async with serving() as echo:
        await page.goto(echo.address)
        await expect(page.locator("#model")).to_have_text("echo")
        await page.get_by_role("button", name="Tell me a short story.").click()
        await expect(page.locator(".turn.assistant")).to_contain_text("The quick brown fox jumps over the lazy dog.")
        await page.keyboard.press("Escape")
        await expect(page.locator(".turn.assistant .note")).to_have_text("You stopped this answer.")
        await expect(page.locator(".figures").last).to_contain_text("tokens/s")
        await until(lambda: echo.engine.statistics().slots_in_use == (0,))
    await page.close()
