"""The child process that renders chat templates: a template is code of strangers, so it gets a sandbox and a process.

Reads `Render` and writes `Rendered`, each as msgpack behind a 4-byte little-endian length, over stdin and stdout; the first
frame out is an empty `Rendered`: ready. Ends at stdin's end. A render that outlasts its time ends the process, whether or
not the parent still lives to do it. Run by its path (`python template_worker.py`), so that it imports nothing of actorllm.

Marks: where a string of the conversation holds one of `literals` (the tokenizer's special tokens), the worker encloses
it in marks before rendering, and afterwards writes it with `breaker` between its characters; the tokenizer drops the breaker,
so that text of a user never becomes a special token. Everything else of a template's work sees the strings as they are.
"""

import json
import re
import resource
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment
from msgspec import Struct

MAX_MEMORY = 2 * 2**30
"""Bytes of address space: `"a" * 10**11` in a template ends in an error, not in the machine's memory."""

GRACE = 1.0
"""Seconds after its time that the process ends itself, should the parent not have ended it."""

MARK = "".join(secrets.choice("0123456789") for _ in range(30))
"""Digits survive whatever templates do to strings (case, JSON, trimming), and nobody outside knows these."""

OPENING, CLOSING, END_TAG = MARK + "1", MARK + "2", MARK + "3 "
MAX_MESSAGE_LEN = 300
HIDDEN = re.compile(rf"{MARK}[123] ?| ?at 0x[0-9a-fA-F]+")
"""What an error's sentence must not show: marks, and addresses in Python's representations."""


class Render(Struct, frozen=True, kw_only=True):
    """Render `source`. Strings of `conversation` (messages, tools, arguments) are a client's, `constants` are not.

    `is_continued` ends the text with the final message. Limits are characters and seconds.
    """

    source: str
    conversation: dict[str, Any]
    constants: dict[str, Any]
    literals: tuple[str, ...] = ()
    breaker: str = ""
    is_continued: bool = False
    max_len: int
    timeout: float


class Rendered(Struct, frozen=True, kw_only=True):
    """The text, or a sentence that says why there is none; `is_broken`: whatever the conversation, the template has a fault."""

    text: str | None = None
    error: str | None = None
    is_broken: bool = False


class TemplateFailure(Exception):
    """Rendering failed; the sentence is for the client."""


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks what the assistant wrote, for training; here it is plain."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def raise_exception(message: str) -> None:
    """The way of a template to refuse a conversation."""
    raise jinja2.TemplateError(message)


def strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as templates are written for."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def new_environment() -> ImmutableSandboxedEnvironment:
    """What templates are written in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    del environment.globals["lipsum"]
    return environment


def find_fault(source: str) -> str | None:
    """Why `source` is no template, as far as can be seen without compiling it, which computes its constants."""
    try:
        new_environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        return f"{error} (line {error.lineno})"
    except RecursionError:
        return "it is nested too deeply"
    return None


@lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    return new_environment().from_string(source)


@lru_cache(maxsize=8)
def literal_pattern(literals: tuple[str, ...]) -> re.Pattern[str]:
    """Any of `literals`, longer ones first; never matches without literals."""
    longest_first = sorted(literals, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every string in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key) if isinstance(key, str) else key: map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_strings(item, change) for item in value]
    return value


def render(request: Render) -> str:
    """The rendered text. Raises `TemplateFailure`, or whatever the template's code raises."""
    pattern = literal_pattern(request.literals)
    conversation = map_strings(request.conversation, lambda text: pattern.sub(rf"{OPENING}\g<0>{CLOSING}", text))
    if request.is_continued:
        append_tag(conversation["messages"])
    text = run_template(request.source, conversation | request.constants, max_len=request.max_len)
    if request.is_continued:
        text = cut_at_tag(text)
    whole = re.compile(f"{OPENING}({pattern.pattern}){CLOSING}")
    text = whole.sub(lambda match: request.breaker.join(match[1]), text)
    # A template may split a marked string; the single mark left still keeps its neighbours apart.
    return text.replace(OPENING, request.breaker).replace(CLOSING, request.breaker)


def run_template(source: str, variables: dict[str, Any], *, max_len: int) -> str:
    pieces, length = [], 0
    for piece in compile_template(source).generate(variables):
        length += len(piece)
        if length > max_len:
            raise TemplateFailure(f"the chat template wrote more than {max_len} characters")
        pieces.append(piece)
    return "".join(pieces)


def append_tag(messages: list[dict[str, Any]]) -> None:
    """Mark the end of the final message's text, so that it is found again in the rendered text."""
    content = messages[-1].get("content")
    if not isinstance(content, str) or not content.strip():
        raise TemplateFailure("continue_final_message needs text in the final message")
    messages[-1]["content"] = content + END_TAG


def cut_at_tag(text: str) -> str:
    """The text up to the final message's end. A template that trims messages took the tag's space away: then the
    message's own trailing space goes too."""
    place = text.rfind(END_TAG.strip())
    if place < 0:
        raise TemplateFailure("continue_final_message: the chat template does not show the final message's end")
    return text[:place] if text.startswith(END_TAG, place) else text[:place].rstrip()


def answer(frame: bytes) -> Rendered:
    """Render what `frame` asks for; every failure becomes a sentence."""
    try:
        request = msgspec.msgpack.decode(frame, type=Render)
        signal.setitimer(signal.ITIMER_REAL, request.timeout + GRACE)
        try:
            return Rendered(text=render(request))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except jinja2.TemplateSyntaxError as error:
        return Rendered(error=f"{error} (line {error.lineno})"[:MAX_MESSAGE_LEN], is_broken=True)
    except (TemplateFailure, jinja2.TemplateError) as error:
        sentence = str(error)
    except MemoryError:
        sentence = "the chat template needs too much memory for this conversation"
    except Exception as error:  # boundary: a template is a stranger's code and may raise anything
        sentence = f"the chat template failed: {type(error).__name__}: {error}"
    return Rendered(error=HIDDEN.sub("", sentence)[:MAX_MESSAGE_LEN])


def read_frame(source: BinaryIO) -> bytes | None:
    """One frame; None at the end of the stream."""
    head = source.read(4)
    if len(head) < 4:
        return None
    length = int.from_bytes(head, "little")
    frame = source.read(length)
    return frame if len(frame) == length else None


def write_frame(target: BinaryIO, message: Rendered) -> None:
    try:
        frame = msgspec.msgpack.encode(message)
    except UnicodeEncodeError:
        frame = msgspec.msgpack.encode(Rendered(error="the chat template wrote text that is not valid Unicode"))
    target.write(len(frame).to_bytes(4, "little") + frame)
    target.flush()


def main() -> None:
    for limit, value in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # not every system can limit the address space
            resource.setrlimit(limit, (value, value))
    source, target = sys.stdin.buffer, sys.stdout.buffer
    write_frame(target, Rendered())
    while (frame := read_frame(source)) is not None:
        write_frame(target, answer(frame))


if __name__ == "__main__":
    main()
