"""The page's files as they are served; no browser."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import actorllm.server.chat_page as chat_page
from tests.server.fake_server import Fake

FILES = sorted(path.name for path in chat_page.FOLDER.iterdir())
MODULES = [name for name in FILES if name.endswith(".js")]


def text_of(name: str) -> str:
    return (chat_page.FOLDER / name).read_text()


class References(HTMLParser):
    """What a page loads, and whatever a policy without inline script and style would block."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.loaded += [value for name in ("src", "href") if (value := given.get(name)) and not value.startswith("#")]


async def test_the_page_and_its_files(fake: Fake) -> None:
    async with fake.client.get(fake.address + "/") as response:
        assert (response.status, response.content_type, response.charset) == (200, "text/html", "utf-8")
        references = References()
        references.feed(await response.text())
    assert not references.inline
    assert references.loaded
    for name in references.loaded:
        async with fake.client.get(f"{fake.address}/{name}") as response:
            assert response.status == 200
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    for name in FILES:
        async with fake.client.get(f"{fake.address}/page/{name}") as response:
            assert (response.status, response.content_type) == (200, kinds[Path(name).suffix])
            assert await response.read() == (chat_page.FOLDER / name).read_bytes()


async def test_the_policy_allows_what_this_server_sends_and_nothing_else(fake: Fake) -> None:
    async with fake.client.get(fake.address + "/") as response:
        policy = dict(each.strip().split(" ", 1) for each in response.headers["Content-Security-Policy"].split(";"))
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert policy.pop("default-src") == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert set(policy.values()) == {"'self'", "'none'"}


async def test_a_known_file_is_not_sent_again(fake: Fake) -> None:
    async with fake.client.get(fake.address + "/page/main.js") as response:
        tag = response.headers["ETag"]
    for given, status in ((tag, 304), ('"other"', 200), (f'"other", {tag}', 304)):
        async with fake.client.get(fake.address + "/page/main.js", headers={"If-None-Match": given}) as response:
            assert response.status == status


@pytest.mark.parametrize("name", ["nothing.js", "..%2fchat_page.py", "%2e%2e/chat_page.py", "", "main.js/", "chat_page.py"])
async def test_no_other_file_is_served(fake: Fake, name: str) -> None:
    async with fake.client.get(f"{fake.address}/page/{name}") as response:
        assert response.status == 404
        assert "def " not in await response.text()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_no_way_from_text_to_markup_or_code(name: str) -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|setHTML|\beval\b|new Function|srcdoc"
    assert not re.findall(sinks, text_of(name))
    for imported in re.findall(r'from "\./([\w.]+)"', text_of(name)):
        assert imported in MODULES


@pytest.mark.parametrize("name", FILES)
def test_files_stay_small(name: str) -> None:
    assert len(text_of(name).splitlines()) <= 400


def test_every_id_that_the_modules_ask_for_is_in_the_page() -> None:
    present = set(re.findall(r'\bid="([\w-]+)"', text_of("index.html")))
    icons = {name.removeprefix("icon-") for name in present if name.startswith("icon-")}
    for name in MODULES:
        text = text_of(name)
        asked = re.findall(r'(?:byId|getElementById)\("([\w-]+)"\)', text) + re.findall(r'querySelector\("#([\w-]+)"\)', text)
        assert set(asked) <= present
        assert set(re.findall(r'icon(?:Button)?\("([\w-]+)"', text)) <= icons
