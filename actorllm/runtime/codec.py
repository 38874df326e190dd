"""Messages to bytes and back, by the contract that an actor's `receive` declares.

The annotation of `receive`'s message is a Struct or a union of tagged Structs; msgspec validates against it. The
plain codec passes objects as they are and checks their type only. Knows no mailbox.
"""

from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

import msgspec


class ContractViolation(Exception):
    """A message or a reply is not what the actor's `receive` declares."""


class Codec(Protocol):
    """What travels in a mailbox for a message, and in a future for a reply."""

    def encode(self, message: Any) -> Any: ...
    def decode(self, data: Any) -> Any: ...
    def encode_reply(self, reply: Any) -> Any: ...
    def decode_reply(self, data: Any) -> Any: ...


class EncodedCodec:
    """Everything crosses as msgpack bytes, so an actor may live anywhere."""

    def __init__(self, actor_class: type) -> None:
        message_type, reply_type = contract_of(actor_class)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(message_type)
        self._reply_decoder = msgspec.msgpack.Decoder(reply_type)

    def encode(self, message: Any) -> bytes:
        try:
            return self._encoder.encode(message)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise ContractViolation(f"{type(message).__name__} cannot be encoded: {error}") from error

    def decode(self, data: bytes) -> Any:
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ContractViolation(str(error)) from error

    def encode_reply(self, reply: Any) -> bytes:
        return self.encode(reply)

    def decode_reply(self, data: bytes) -> Any:
        try:
            return self._reply_decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ContractViolation(f"reply: {error}") from error


class PlainCodec:
    """Objects cross as they are; only their type is checked."""

    def __init__(self, actor_class: type) -> None:
        message_type, _ = contract_of(actor_class)
        self._types = _members(message_type)

    def encode(self, message: Any) -> Any:
        return message

    def decode(self, data: Any) -> Any:
        if not isinstance(data, self._types):
            raise ContractViolation(f"{type(data).__name__} is not one of {', '.join(t.__name__ for t in self._types)}")
        return data

    def encode_reply(self, reply: Any) -> Any:
        return reply

    def decode_reply(self, data: Any) -> Any:
        return data


def contract_of(actor_class: type) -> tuple[Any, Any]:
    """(message type, reply type) as `actor_class.receive` declares them; a missing reply type is Any."""
    hints = get_type_hints(actor_class.receive)  # type: ignore[attr-defined]
    if "message" not in hints:
        raise TypeError(f"{actor_class.__name__}.receive must annotate its parameter `message`")
    return hints["message"], hints.get("return", Any)


def _members(message_type: Any) -> tuple[type, ...]:
    """The classes of a union, or the one class."""
    if get_origin(message_type) in (Union, UnionType):
        return tuple(get_args(message_type))
    return (message_type,)
