"""The README's pictures of the chat page: `make screenshots` talks with the demo model, and pictures what it says."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, expect

from actorllm.house import DEMO_MODEL
from tests.chromium import launched
from tests.server.conftest import serving

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "screenshots"
QUESTIONS = ("How do I start you?", "How do I serve my own model?", "Tell me a story about a cat.")
DESK: dict[str, Any] = {"viewport": {"width": 960, "height": 700}}
PICTURES = {"light": DESK | {"color_scheme": "light"}, "dark": DESK | {"color_scheme": "dark"}}


async def talk(page: Page) -> None:
    """Ask everything, each after the last answer has ended."""
    await expect(page.locator("#state")).to_have_text("Connected")
    for number, question in enumerate(QUESTIONS, start=1):
        await page.get_by_label("Message", exact=True).fill(question)
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator('.turn.assistant[aria-busy="false"]')).to_have_count(number, timeout=60_000)
    await page.mouse.move(0, 0)


async def picture(browser: Browser, address: str, *, name: str, options: dict[str, Any]) -> None:
    """One conversation in a browser of its own."""
    context = await browser.new_context(**options)
    page = await context.new_page()
    await page.goto(address)
    await talk(page)
    await page.screenshot(path=FOLDER / f"{name}.png")
    await context.close()


async def main(model: Path) -> None:
    """All pictures."""
    FOLDER.mkdir(exist_ok=True)
    async with serving(model) as served, launched() as browser:
        for name, options in PICTURES.items():
            await picture(browser, served.address, name=name, options=options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=DEMO_MODEL)
    asyncio.run(main(parser.parse_args().model))
