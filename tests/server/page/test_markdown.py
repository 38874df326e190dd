"""Text of a model on the page: what Markdown becomes, and that nothing in it becomes anything else."""

import random

import pytest
from playwright.async_api import expect

from tests.server.page.conftest import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")

RENDER = """async (texts) => {
    const { renderMarkdown } = await import("./page/markdown.js");
    const box = document.createElement("div");
    return texts.map((text) => { renderMarkdown(box, text); return box.innerHTML; });
}"""
LINK = 'target="_blank" rel="noopener noreferrer nofollow"'
CODE = (
    '<figure class="code"><figcaption><span>{0}</span><button type="button" class="copy" aria-label="Copy code">Copy</button>'
    '</figcaption><pre tabindex="0" role="region" aria-label="{0}"><code>{1}</code></pre></figure>'
)
CASES = {
    "plain": "<p>plain</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# A\n### B #": "<h4>A</h4><h6>B</h6>",
    "#hash": "<p>#hash</p>",
    "a **b** *c* ~~d~~ ***e***": "<p>a <strong>b</strong> <em>c</em> <del>d</del> <em><strong>e</strong></em></p>",
    "2 * 3 * 4 and snake_case_name": "<p>2 * 3 * 4 and snake_case_name</p>",
    "**open and *half": "<p>**open and *half</p>",
    "*a *b* **c *d*": "<p><em>a *b</em> **c <em>d</em></p>",
    "*" + "a" * 1999 + "***b** c*": "<p>*" + "a" * 1999 + "***b** c*</p>",
    "_a_ __b__": "<p><em>a</em> <strong>b</strong></p>",
    "**bold with *slanted* in it**": "<p><strong>bold with <em>slanted</em> in it</strong></p>",
    "`x < 1` and ``a ` b``": "<p><code>x &lt; 1</code> and <code>a ` b</code></p>",
    "\\*not\\* `\\*`": "<p>*not* <code>\\*</code></p>",
    "```python\nif a < b:\n    pass\n```\nafter": CODE.format("python", "if a &lt; b:\n    pass") + "<p>after</p>",
    "```\nstill open": CODE.format("code", "still open"),
    "- a\n- b\n  - c\n": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n2. b": '<ol start="1"><li>a</li><li>b</li></ol>',
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "---": "<hr>",
    "|a|b|\n|-|:-:|\n|1|\n": (
        '<div class="table" tabindex="0" role="region" aria-label="table"><table><thead><tr><th scope="col">a</th><th scope="col">b</th>'
        "</tr></thead><tbody><tr><td>1</td><td></td></tr></tbody></table></div>"
    ),
    "[a](https://example.org/?q=1&r)": f'<p><a href="https://example.org/?q=1&amp;r" {LINK}>a</a></p>',
    "see https://example.org/a_b_c.": f'<p>see <a href="https://example.org/a_b_c" {LINK}>https://example.org/a_b_c</a>.</p>',
    "![cat](https://example.org/cat.png)": f'<p><a href="https://example.org/cat.png" {LINK}>cat</a></p>',
    "[a](javascript:alert(1))": "<p>[a](javascript:alert(1))</p>",
    "[a](data:text/html,x) [b](//x.org) [c](JaVaScRiPt:x)": "<p>[a](data:text/html,x) [b](//x.org) [c](JaVaScRiPt:x)</p>",
    "<script>alert(1)</script>": "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>",
    '<img src=x onerror="alert(1)">': '<p>&lt;img src=x onerror="alert(1)"&gt;</p>',
    "&lt;b&gt; &amp;": "<p>&amp;lt;b&amp;gt; &amp;amp;</p>",
    "\U0001f600 \u05d0": "<p>\U0001f600 \u05d0</p>",
}


async def test_what_markdown_becomes(chat: ChatPage) -> None:
    assert dict(zip(CASES, await chat.page.evaluate(RENDER, list(CASES)), strict=True)) == CASES


ALLOWED = {"A", "BLOCKQUOTE", "BR", "BUTTON", "CODE", "DEL", "DIV", "EM", "FIGCAPTION", "FIGURE", "H4", "H5", "H6", "HR", "LI", "OL", "P", "PRE"}
ALLOWED |= {"SPAN", "STRONG", "TABLE", "TBODY", "TD", "TH", "THEAD", "TR", "UL"}
CHECK = """async (texts) => {
    const { renderMarkdown } = await import("./page/markdown.js");
    const seen = new Set();
    let slowest = 0;
    for (const text of texts) {
        const box = document.createElement("div");
        const began = performance.now();
        renderMarkdown(box, text);
        slowest = Math.max(slowest, performance.now() - began);
        for (const node of box.querySelectorAll("*")) {
            seen.add(node.tagName);
            for (const { name } of node.attributes) seen.add(name);
            if (node.href && !/^(https?|mailto):/.test(node.href)) seen.add(node.href);
        }
    }
    return [[...seen], slowest];
}"""
ATTRIBUTES = {"href", "target", "rel", "class", "type", "aria-label", "tabindex", "role", "scope", "start"}
PIECES = [*CASES, "*", "_", "`", "```", "[", "](", ")", "<", ">", "|", "- ", "1. ", "> ", "#", "\n", "\n\n", "  ", "\\", "!", "javascript:", "https://", "x"]


async def test_random_text_becomes_nothing_but_what_markdown_has(chat: ChatPage) -> None:
    rng = random.Random(7)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 60))) for _ in range(400)]
    assert set((await chat.page.evaluate(CHECK, texts))[0]) <= ALLOWED | ATTRIBUTES


REPEATED = ("> ", "*a ", "- ", "[", "`a``", "**", "[a](", "|-", "_a", "\\", "#", "  - x\n", "https://", "![", "1. ", "*a **b ~~c ", "`a ``b ```c ")


async def test_hostile_repetition_is_drawn(chat: ChatPage) -> None:
    """20,000 characters that have quadratic or deeply nested readings. Two seconds are far above what linear work takes."""
    for piece in REPEATED:
        text = (piece * 20_000)[:20_000]
        seen, milliseconds = await chat.page.evaluate(CHECK, [text])
        assert set(seen) <= ALLOWED | ATTRIBUTES and milliseconds < 2000, (piece, milliseconds)


async def test_a_streamed_answer_ends_as_the_whole_text_does(chat: ChatPage) -> None:
    whole = "\n\n".join(CASES)
    expected = (await chat.page.evaluate(RENDER, [whole]))[0]
    growing = """async ([text, step]) => {
        const { renderMarkdown } = await import("./page/markdown.js");
        const box = document.createElement("div");
        for (let end = step; end < text.length + step; end += step) renderMarkdown(box, text.slice(0, end));
        return box.innerHTML;
    }"""
    assert await chat.page.evaluate(growing, [whole, 7]) == expected


async def test_blocks_that_are_complete_are_not_drawn_again(chat: ChatPage) -> None:
    await chat.write("hello")
    chat.say("first\n\nsecond", finish=None)
    await expect(chat.answer.locator(".text > p")).to_have_count(2)
    await chat.answer.locator(".text > p").first.evaluate("(node) => { node.dataset.same = 'yes'; }")
    chat.say(" goes on")
    await expect(chat.answer.locator(".text > p").last).to_have_text("second goes on")
    assert await chat.answer.locator(".text > p").first.get_attribute("data-same") == "yes"


async def test_hostile_answers_stay_text(chat: ChatPage) -> None:
    hostile = '<img src=x onerror="document.title=1">\n\n<script>document.title=1</script>\n\n<iframe srcdoc="x"></iframe>\n\n[x](javascript:1)'
    await chat.ask('<b onclick="1">me</b>', hostile)
    assert await chat.page.locator(".turn :is(img, script, iframe, b, a)").count() == 0
    assert "<script>" in (await chat.texts())[1]
    assert (await chat.texts())[0] == '<b onclick="1">me</b>'
    await chat.page.reload()
    await chat.ready()
    assert await chat.page.locator(".turn :is(img, script, iframe, b, a)").count() == 0
    await expect(chat.page.locator("#sidebar .pick")).to_have_text('<b onclick="1">me</b>')


async def test_copying(chat: ChatPage) -> None:
    await chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await chat.ask("code", "See:\n\n```c\nint x;\n```")
    copied = "navigator.clipboard.readText()"
    await chat.button("Copy code").click()
    await expect(chat.page.locator("#announcements")).to_have_text("Copied")
    assert await chat.page.evaluate(copied) == "int x;"
    await chat.button("Copy", chat.answer.locator(".foot")).click()
    assert await chat.page.evaluate(copied) == "See:\n\n```c\nint x;\n```"
    await chat.page.evaluate("delete Navigator.prototype.clipboard")  # as on a page that is not secure
    await chat.button("Copy", chat.turns.first).click()
    await expect(chat.page.locator("#announcements")).to_have_text("Copied")
