"""The settings dialog: what reaches the engine, what cannot be, and what the server refuses."""

import pytest
from playwright.async_api import expect

from actorllm.errors import PromptTooLong
from tests.server.fake_server import until
from tests.server.page.conftest import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    ("label", "wrong", "right"),
    [("Seed", "99999999999999999999", "7"), ("Longest answer", "1e25", "20"), ("Stop at", "\n".join("abcdefghijklmnopqr"), "a\nb")],
)
async def test_settings_that_cannot_be_stay_in_the_dialog(chat: ChatPage, label: str, wrong: str, right: str) -> None:
    await chat.page.get_by_role("button", name="Settings").click()
    await chat.page.get_by_label(label).fill(wrong)
    await chat.button("Save").click()
    assert await chat.page.get_by_label(label).evaluate("(field) => !field.validity.valid")
    await expect(chat.page.locator("#settings")).to_be_visible()
    await chat.page.get_by_label(label).fill(right)
    await chat.button("Save").click()
    await expect(chat.page.locator("#settings")).to_be_hidden()
    await chat.ask("hello", "Hi!")


async def test_settings_that_the_server_refuses_are_told_in_the_dialog_and_not_kept(chat: ChatPage) -> None:
    await chat.ask("hello", "Hi!")
    for _ in range(2):  # in a conversation that the server knows, and in a new one
        await chat.page.get_by_role("button", name="Settings").click()
        await chat.page.locator("#set-seed").evaluate("(field) => field.removeAttribute('max')")
        await chat.page.get_by_label("Seed").fill("9223372036854775808")
        await chat.button("Save").click()
        await expect(chat.page.locator("#settings-trouble")).not_to_be_empty()
        await expect(chat.page.locator("#settings")).to_be_visible()
        await chat.button("Cancel").click()
        await expect(chat.page.locator("#settings")).to_be_hidden()
        assert await chat.page.evaluate("localStorage['actorllm.settings']") is None
        await chat.ask("go on", "Yes.")
        assert chat.engine.submitted[-1][1].seed is None
        await chat.button("New chat").click()


async def test_settings_go_to_the_engine(chat: ChatPage) -> None:
    await chat.page.get_by_role("button", name="Settings").click()
    temperature = chat.page.get_by_label("Temperature")
    await expect(temperature).to_have_value("0.7")
    await expect(chat.page.get_by_text("Default: 0.7.")).to_be_visible()
    await temperature.fill("0.2")
    await chat.page.get_by_label("Longest answer").fill("33")
    await chat.page.get_by_label("Stop at").fill("###\nEnd.")
    await chat.page.get_by_label("Instructions").fill("Be brief.")
    await chat.button("Save").click()
    await expect(chat.page.locator("#settings")).to_be_hidden()
    await chat.write("hello")
    params = chat.engine.submitted[-1][1]
    assert (params.temperature, params.max_tokens, params.stop, params.top_k) == (0.2, 33, ("###", "End."), 5)
    assert chat.asked()[0] == {"role": "system", "content": "Be brief."}
    chat.say("Hi!", finish="length")
    await expect(chat.answer.locator(".note")).to_contain_text("Cut off")
    await chat.page.get_by_role("button", name="Settings").click()
    await expect(chat.page.get_by_label("Longest answer")).to_have_value("33")
    await chat.button("Defaults").click()
    await chat.button("Save").click()
    await chat.button("Answer again").click()
    await until(lambda: len(chat.engine.streams) == 2)
    assert chat.engine.submitted[-1][1] == chat.engine.default_params


async def test_an_answer_longer_than_the_context_is_told_in_words(chat: ChatPage) -> None:
    await chat.page.get_by_role("button", name="Settings").click()
    length, context_len = chat.page.get_by_label("Longest answer"), chat.engine.info.context_len
    await expect(chat.page.locator("#about-max_tokens")).to_contain_text(f"the model has {context_len} for the conversation and its answer")
    await length.fill(str(context_len + 1))
    words = await length.evaluate("(field) => field.validationMessage")
    assert words == f"At most {context_len}: the model cannot read and write more at once. Leave it empty for as much as fits."
    await chat.button("Save").click()
    await expect(chat.page.locator("#settings")).to_be_visible()
    await length.fill(str(context_len))
    await chat.button("Save").click()
    await expect(chat.page.locator("#settings")).to_be_hidden()  # once the server has taken them: nobody can write before
    chat.engine.refusal = PromptTooLong("max_tokens is too large", param="max_tokens")
    await chat.message.fill("hello")
    await chat.message.press("Enter")
    await expect(chat.answer.locator(".note")).to_contain_text("leave it empty for as much as fits")


@pytest.mark.parametrize("leave", ["Cancel", "Escape"])
async def test_colours_are_shown_at_once_and_kept_by_saving(chat: ChatPage, leave: str) -> None:
    async def is_dark() -> bool:
        return await chat.page.evaluate("document.documentElement.dataset.theme") == "dark"

    await chat.page.get_by_role("button", name="Settings").click()
    await chat.page.get_by_label("Dark").check()
    assert await is_dark()
    await (chat.page.keyboard.press("Escape") if leave == "Escape" else chat.button("Cancel").click())
    await expect(chat.page.locator("#settings")).to_be_hidden()
    await expect(chat.page.locator("html")).not_to_have_attribute("data-theme", "dark")
    await chat.page.get_by_role("button", name="Settings").click()
    await expect(chat.page.get_by_label("As the system")).to_be_checked()
    await chat.page.get_by_label("Dark").check()
    await chat.button("Save").click()
    await expect(chat.page.locator("#settings")).to_be_hidden()
    await chat.page.reload()
    await chat.ready()
    assert await is_dark()
