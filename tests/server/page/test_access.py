"""The page for everyone: axe-core's rules, the keyboard alone, phones, dark mode, screen readers."""

from collections.abc import Awaitable, Callable

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from actorllm.errors import QueueFull
from tests.server.fake_server import until
from tests.server.page.conftest import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")
Opener = Callable[..., Awaitable[ChatPage]]
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
RICH = """# A heading

Some **bold**, *slanted* and `inline` words, and a [link](https://example.org).

```python
print("a line that is far too long for a phone, so that the block has to scroll sideways", 1, 2, 3)
```

1. one
2. two

> said before

| a | b |
|---|---|
| 1 | 2 |
"""


async def violations(page: Page) -> list[str]:
    """What axe-core calls serious or worse. Its script comes from the test, past the page's own policy."""
    found = (await Axe().run(page)).response["violations"]
    return [f"{each['id']}: {node['html']}" for each in found if each["impact"] in ("serious", "critical") for node in each["nodes"]]


async def fill(chat: ChatPage) -> None:
    """Puts a conversation on the page that shows all of its parts."""
    await chat.ask("show me everything", RICH)
    await chat.button("Answer again", chat.answer).click()
    await until(lambda: len(chat.engine.streams) == 2)
    chat.say(RICH, finish="length")
    await chat.finished()
    chat.engine.refusal = QueueFull("too many requests wait")
    await chat.message.fill("more")
    await chat.button("Send").click()
    await expect(chat.answer.locator(".note")).to_be_visible()
    chat.engine.refusal = None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
async def test_axe_finds_nothing_serious(open_chat: Opener, scheme: str, device: dict) -> None:
    chat = await open_chat(color_scheme=scheme, reduced_motion="reduce", **device)
    page = chat.page
    assert not await violations(page)
    await fill(chat)
    assert not await violations(page)
    await chat.button("Chats").click()
    assert not await violations(page)
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Settings").click()
    assert not await violations(page)
    await chat.button("Cancel").click()
    await chat.write("and now?")
    chat.say("I am", finish=None)
    await expect(chat.answer.locator(".text")).to_have_text("I am")
    await chat.button("Edit", chat.turns.first).focus()
    assert not await violations(page)


async def test_axe_is_not_blind(chat: ChatPage) -> None:
    await chat.page.evaluate("document.getElementById('message').removeAttribute('aria-label')")
    await chat.page.evaluate("document.getElementById('message').removeAttribute('placeholder')")
    assert await violations(chat.page)


async def press(page: Page, *keys: str) -> None:
    for key in keys:
        await page.keyboard.press(key)


async def tab_to(page: Page, name: str, *, backwards: bool = False) -> None:
    """Press Tab until the element of this name has the focus; every stop on the way can be seen."""
    for _ in range(40):
        await page.keyboard.press("Shift+Tab" if backwards else "Tab")
        focused = await page.evaluate(
            """() => {
                const at = document.activeElement, box = at.getBoundingClientRect();
                const style = getComputedStyle(at);
                return {
                    name: at.getAttribute("aria-label") ?? at.labels?.[0]?.textContent ?? at.textContent,
                    isShown: box.width > 0 && box.height > 0 && style.visibility === "visible" && style.opacity !== "0",
                };
            }"""
        )
        if focused["name"].strip() == name:
            assert focused["isShown"]
            return
    raise AssertionError(f"Tab never reaches {name!r}")


async def test_the_keyboard_alone(chat: ChatPage) -> None:
    page = chat.page
    await expect(chat.message).to_be_focused()
    await page.keyboard.type("hello")
    await press(page, "Shift+Enter")
    await page.keyboard.type("there")
    await press(page, "Enter")
    await until(lambda: chat.engine.streams)
    assert chat.asked()[0]["content"] == "hello\nthere"
    chat.say("Hi", finish=None)
    await expect(chat.answer.locator(".text")).to_have_text("Hi")
    await press(page, "Escape")
    await expect(chat.answer.locator(".note")).to_have_text("You stopped this answer.")
    await tab_to(page, "Answer again", backwards=True)
    await press(page, "Enter")
    await until(lambda: len(chat.engine.streams) == 2)
    chat.say("Hello!")
    await chat.finished()
    await expect(chat.message).to_be_focused()
    await tab_to(page, "Previous version", backwards=True)
    await press(page, "Space")
    await expect(chat.answer.locator(".text")).to_have_text("Hi")
    await expect(page.get_by_role("button", name="Edit")).to_be_enabled()  # the server has heard of the other version
    await tab_to(page, "Message")
    await press(page, "ArrowUp")
    editor = page.get_by_label("Edit your message")
    await expect(editor).to_be_focused()
    await press(page, "Escape")
    await expect(editor).to_have_count(0)
    await tab_to(page, "Message")
    await press(page, "ArrowUp", "End", "!", "Enter")
    await until(lambda: len(chat.engine.streams) == 3)
    chat.say("Hello again!")
    await chat.finished()
    await tab_to(page, "Settings", backwards=True)
    await press(page, "Enter")
    await tab_to(page, "Temperature")
    await press(page, "Home", "Enter")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.get_by_role("button", name="Settings")).to_be_focused()
    await tab_to(page, "New chat", backwards=True)
    await press(page, "Enter")
    await expect(chat.turns).to_have_count(0)
    await page.keyboard.type("another")
    await press(page, "Enter")
    await until(lambda: len(chat.engine.streams) == 4)
    assert chat.engine.submitted[-1][1].temperature == 0


async def test_the_skip_link_leads_to_the_message(chat: ChatPage) -> None:
    await tab_to(chat.page, "Skip to the message box", backwards=True)
    await chat.page.keyboard.press("Enter")
    await expect(chat.message).to_be_focused()


async def test_a_phone(open_chat: Opener) -> None:
    chat = await open_chat(**PHONE)
    page = chat.page
    await fill(chat)
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    for selector in ("#composer", "#composer button", "#toggle-sidebar", "#open-settings"):
        box = await page.locator(selector).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640
        assert box["height"] >= 36
    await expect(chat.button("New chat")).not_to_be_in_viewport()
    await chat.button("Chats").tap()
    await expect(chat.button("New chat")).to_be_in_viewport()
    await chat.button("New chat").tap()
    await expect(chat.button("New chat")).not_to_be_in_viewport()
    await expect(chat.turns).to_have_count(0)
    await chat.message.fill("line one")
    await chat.message.press("Enter")  # a new line: a touch keyboard has no Shift+Enter
    assert "\n" in await chat.message.input_value()
    await chat.button("Send").tap()
    await until(lambda: len(chat.engine.streams) == 3)
    await page.get_by_role("button", name="Settings").tap()
    box = await page.get_by_role("dialog").bounding_box()
    assert box and box["x"] >= 0 and box["width"] <= 360 and box["y"] >= 0 and box["y"] + box["height"] <= 640


async def brightness(page: Page) -> float:
    """Of the page's background, from 0 to 255."""
    colour = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    values = [float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(values) / 3


async def test_dark_mode_follows_the_system_unless_told_otherwise(open_chat: Opener) -> None:
    chat = await open_chat(color_scheme="dark")
    assert await brightness(chat.page) < 60
    await chat.page.emulate_media(color_scheme="light")
    assert await brightness(chat.page) > 200
    await chat.page.get_by_role("button", name="Settings").click()
    await chat.page.get_by_label("Dark").check()
    await chat.button("Save").click()
    await expect(chat.page.get_by_role("dialog")).to_have_count(0)
    assert await brightness(chat.page) < 60
    await chat.page.reload()
    await chat.ready()
    assert await brightness(chat.page) < 60
