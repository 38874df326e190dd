"""Reads a request's body: bounded before anything is made of it, and refused in plain words.

A body is decoded on the event loop, because the decoder keeps the GIL in a thread, too. So its strings, lists and values are counted
first, in a few passes over its bytes; a request that asks for more of them than any context can use costs no more than that.
Knows the types of bodies, not what they mean.
"""

import re
from typing import Any

import msgspec

from actorllm.errors import InvalidRequest, UnsupportedField
from actorllm.server.api_types import UNSUPPORTED_FIELDS, RequestBody, check_together

MAX_STRINGS = 2**16
"""Strings of a body, names of fields among them: 16,000 messages have as many."""

MAX_NESTED = 2**16
"""Lists and objects of a body."""

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_WRONG_TYPE = re.compile(r"Expected `([\w| ]+)`, got `(\w+)`")
_MISSING_FIELD = re.compile(r"Object missing required field `(\w+)`")
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_HALF_PAIR = re.compile(
    rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})(?<!\\)\\u[dD][c-fC-F]"
)


def read_body(data: bytes, kind: type, *, context: int) -> Any:
    """A body of type `kind` for a model that reads `context` tokens. Raises `InvalidRequest` or `UnsupportedField` that names the
    field."""
    check_amount(data, context)
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        _refuse_unsupported(fields)
        body = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if _HALF_PAIR.search(data):
            raise InvalidRequest(
                "the body holds text with half of a surrogate pair (\\ud800 to \\udfff alone): send the whole character, or leave it out"
            ) from error
        raise InvalidRequest(f"the body cannot be read as JSON: {error}") from error
    if isinstance(body, RequestBody):
        check_together(body)
    return body


def check_amount(data: bytes, context: int) -> None:
    """Raises `InvalidRequest` for more strings, lists or values than a request can have use for."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")  # all quotes left begin or end a string
    num_strings = plain.count(b'"') // 2
    if num_strings > MAX_STRINGS:
        raise InvalidRequest(f"the body holds {num_strings} strings, more than {MAX_STRINGS}: send less in one request")
    structure = b"".join(plain.split(b'"')[::2])
    num_nested = structure.count(b"[") + structure.count(b"{")
    if num_nested > MAX_NESTED:
        raise InvalidRequest(f"the body holds {num_nested} lists and objects, more than {MAX_NESTED}: send less in one request")
    num_values, most = structure.count(b",") + 1, MAX_STRINGS + num_nested * context
    if num_values > most:
        raise InvalidRequest(
            f"the body holds {num_values} values, more than {most}: a list of token ids can have as many as the context, {context}"
        )


def _refuse_unsupported(fields: dict[str, msgspec.Raw]) -> None:
    for name in UNSUPPORTED_FIELDS.keys() & fields.keys():
        value = msgspec.json.decode(fields[name])
        if value is not None and not any(type(value) is type(same) and value == same for same in UNSUPPORTED_FIELDS[name]):
            raise UnsupportedField(f"{name} is not supported by this version; leave it out", param=name)


def _wrong_field(sentence: str) -> InvalidRequest:
    """msgspec's sentence in plain words: what the field must be, and what it is."""
    found = _PATH.search(sentence)
    path = found[1] if found else ""
    what = sentence[: found.start()] if found else sentence
    field = re.match(r"\w+", path)
    subject = re.sub(r"^(.*)\[\.\.\.\]$", r"a value of \1", path) or "the body"
    if missing := _MISSING_FIELD.search(what):
        name = missing[1]
        where = f"{path} has no {name}" if path else f"{name} is missing"
        return InvalidRequest(f"{where}: the request needs it", param=field[0] if field else name)
    if wrong := _WRONG_TYPE.search(what):
        kinds = wrong[1].split(" | ")
        wanted = " or ".join(WORDS.get(kind, kind) for kind in kinds if kind != "null")
        mend = ", or left out" if "null" in kinds else ""
        what = f"must be {wanted}{mend}, not {WORDS.get(wrong[2], wrong[2])}"
        return InvalidRequest(f"{subject} {what}", param=field[0] if field else None)
    return InvalidRequest(f"{subject}: {what[0].lower()}{what[1:]}", param=field[0] if field else None)
